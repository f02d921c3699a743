#include "../small/vector_avx512.h"

namespace axiond::encoder {
namespace {
constexpr int kAccumulators = 16;
}  // namespace
}  // namespace axiond::encoder

#include "rows.h"

namespace axiond::encoder {
const Level kAvx512vnni = level_of(Isa::avx512vnni);
}  // namespace axiond::encoder
