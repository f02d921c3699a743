#include "../small/vector_portable.h"

namespace axiond::encoder {
namespace {
constexpr int kAccumulators = 4;
}  // namespace
}  // namespace axiond::encoder

#include "rows.h"

namespace axiond::encoder {
const Level kPortable = level_of(Isa::portable);
}  // namespace axiond::encoder
