#include "../small/vector_neon.h"

namespace axiond::encoder {
namespace {
constexpr int kAccumulators = 4;
}  // namespace
}  // namespace axiond::encoder

#include "rows.h"

namespace axiond::encoder {
const Level kNeon = level_of(Isa::neon);
}  // namespace axiond::encoder
