#include <stdexcept>

#include "linear.h"

namespace axiond::linear {
namespace {

// Every level of this build, highest first.
constexpr const Level* kLevels[] = {
#if defined(__aarch64__)
    &kNeonBf16, &kNeonI8mm, &kNeonDotprod, &kNeon,
#elif defined(__x86_64__)
    &kAvx512bf16, &kAvx512vnni, &kAvx2,
#endif
    &kPortable,
};

}  // namespace

const Kernel& choose(Op op, int64_t m) {
  const Isa active = active_isa();
  for (const Level* level : kLevels)
    for (int i = 0; i < level->count; ++i) {
      const Kernel& kernel = level->kernels[i];
      if (kernel.op == op && kernel.min_rows <= m && permits(active, kernel.isa)) return kernel;
    }
  throw std::logic_error("the portable level has every op");
}

const Helpers& helpers() {
  const Isa active = active_isa();
  for (const Level* level : kLevels)
    if (level->helpers.quantize && permits(active, level->helpers.isa)) return level->helpers;
  throw std::logic_error("the portable level has helpers");
}

}  // namespace axiond::linear
