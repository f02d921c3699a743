// Calls one micro-kernel once, between the marks that trace_plugin.c looks for: run_kernel ISA OP ROWS PANELS K GROUP.
// Prints the kernel's name, and the bytes of weights that it read.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "../../native/linear/linear.h"

using namespace axiond;
using namespace axiond::linear;

int main(int, char** argv) {
  const std::map<std::string, Op> ops = {
      {"q4", Op::q4}, {"q8", Op::q8}, {"q4_exact", Op::q4_exact}, {"bf16", Op::bf16}};
  const Op op = ops.at(argv[2]);
  const int64_t rows = std::atoi(argv[3]), panels = std::atoi(argv[4]), k = std::atoi(argv[5]);
  const int group = std::atoi(argv[6]);
  force_isa(argv[1]);
  const Kernel& kernel = choose(op, rows);
  const Rhs rhs{op == Op::q8 ? Format::q8 : op == Op::bf16 ? Format::bf16 : Format::q4, Dtype::f16, panels * kColumns,
                k, group, nullptr};
  const auto buffer = [](int64_t size) { return std::aligned_alloc(64, size_t(size + 63) / 64 * 64); };
  const Tile tile{rows,
                  panels,
                  k,
                  group,
                  rhs.scale_type,
                  buffer((rows + 1) * k * 2),
                  static_cast<float*>(buffer(rows * k / group * 4)),
                  static_cast<int32_t*>(buffer(rows * k / group * 4)),
                  static_cast<uint8_t*>(buffer(panels * rhs.panel_bytes())),
                  rhs.panel_bytes(),
                  static_cast<float*>(buffer(rows * panels * kColumns * 4)),
                  panels * kColumns};
  if (rows > kernel.max_rows || panels > kernel.max_panels) return 1;
  __asm__ volatile("hint #126" ::: "memory");
  kernel.run(tile);
  __asm__ volatile("hint #127" ::: "memory");
  std::printf("%s %lld\n", kernel.name, static_cast<long long>(panels * rhs.panel_bytes()));
}
