// The base level: every AArch64 CPU has it.
#include "neon.h"

namespace axiond::linear {
namespace {

constexpr Kernel kKernels[] = {
    {"matmul_f32_qs8_qs4p16x4_4x8_neon", Op::q4, Isa::neon, 2, 32, 4, LhsLayout::rows, q4_neon},
    {"matmul_f32_qs8_qs4p16x4_1x16_neon", Op::q4, Isa::neon, 1, 1, 16, LhsLayout::rows, q4_neon},
    {"matmul_f32_qs8_qs8p16x4_4x8_neon", Op::q8, Isa::neon, 2, 32, 4, LhsLayout::rows, q8_neon},
    {"matmul_f32_qs8_qs8p16x4_1x16_neon", Op::q8, Isa::neon, 1, 1, 16, LhsLayout::rows, q8_neon},
    {"matmul_f32_bf16_qs4p16x4_4x16_neon", Op::q4_exact, Isa::neon, 1, 32, 4, LhsLayout::rows, q4_exact_neon},
    {"matmul_f32_bf16_bf16p16x2_4x16_neon", Op::bf16, Isa::neon, 1, 32, 4, LhsLayout::rows, bf16_neon},
};

}  // namespace

const Level kNeon = {kKernels, int(std::size(kKernels)), {Isa::neon, quantize_neon, finish_neon, split_neon}};

}  // namespace axiond::linear
