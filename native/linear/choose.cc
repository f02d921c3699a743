#include <stdexcept>

#include "linear.h"

namespace axiond::linear {
namespace {

// Every level of this build, highest first.
const Level kLevels[] = {
#ifdef AXIOND_neon_bf16
    neon_bf16_level(),
#endif
#ifdef AXIOND_neon_i8mm
    neon_i8mm_level(),
#endif
#ifdef AXIOND_neon_dotprod
    neon_dotprod_level(),
#endif
#ifdef AXIOND_neon
    neon_level(),
#endif
#ifdef AXIOND_avx512bf16
    avx512bf16_level(),
#endif
#ifdef AXIOND_avx512vnni
    avx512vnni_level(),
#endif
    portable_level(),
};

}  // namespace

const Kernel& choose(Op op, int64_t m) {
  const Isa active = active_isa();
  for (const Level& level : kLevels)
    for (int i = 0; i < level.count; ++i) {
      const Kernel& kernel = level.kernels[i];
      if (kernel.op == op && kernel.min_rows <= m && permits(active, kernel.isa)) return kernel;
    }
  throw std::logic_error("the portable level has every op");
}

const Helpers& helpers() {
  const Isa active = active_isa();
  for (const Level& level : kLevels)
    if (level.helpers.quantize && permits(active, level.helpers.isa)) return level.helpers;
  throw std::logic_error("the portable level has helpers");
}

}  // namespace axiond::linear
