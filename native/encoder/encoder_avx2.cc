#include "../small/vector_avx2.h"

namespace axiond::encoder {
namespace {
constexpr int kAccumulators = 4;
}  // namespace
}  // namespace axiond::encoder

#include "rows.h"

namespace axiond::encoder {
const Level kAvx2 = level_of(Isa::avx2);
}  // namespace axiond::encoder
