#include "small.h"
#include "vector_portable.h"

#include "rows.h"

namespace axiond::small {
const Level kPortable = level_of(Isa::portable);
}  // namespace axiond::small
