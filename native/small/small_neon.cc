#include "small.h"
#include "vector_neon.h"

#include "rows.h"

namespace axiond::small {
const Level kNeon = level_of(Isa::neon);
}  // namespace axiond::small
