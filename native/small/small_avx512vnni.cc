#include "small.h"
#include "vector_avx512.h"

#include "rows.h"

namespace axiond::small {
const Level kAvx512vnni = level_of(Isa::avx512vnni);
}  // namespace axiond::small
