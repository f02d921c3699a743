// ARMv8.0 has no dot product: SMULL and SMLAL add products up in 16 bits, SADALP and ADDP bring them together.
//
// A vector of weights is 4 columns x 4 k, of activations the same 4 k four times; product 4 * column + k % 4 goes to
// 16-bit lane 4 * column + k % 4 of two accumulators.
#ifndef __ARM_NEON
#error "compile for AArch64"
#endif

#include "neon.h"

namespace axiond::linear {
namespace {

[[gnu::always_inline]] inline int8x16_t repeat(const int8_t* lhs) {
  return vreinterpretq_s8_s32(vld1q_dup_s32(reinterpret_cast<const int32_t*>(lhs)));
}

// Products of columns 0 and 1, and of 2 and 3.
struct Products {
  int16x8_t left, right;
};

[[gnu::always_inline]] inline Products multiply(int8x16_t w, int8x16_t lhs) {
  return {vmull_s8(vget_low_s8(w), vget_low_s8(lhs)), vmull_high_s8(w, lhs)};
}

[[gnu::always_inline]] inline void multiply_add(Products& to, int8x16_t w, int8x16_t lhs) {
  to.left = vmlal_s8(to.left, vget_low_s8(w), vget_low_s8(lhs));
  to.right = vmlal_high_s8(to.right, w, lhs);
}

// kRows rows of activations by 4 * kWide columns of a panel, from quad `first` on.
template <int kRows, int kWide>
struct Block {
  const Tile& t;
  const int8_t* lhs;
  const float* lhs_scale;
  const int32_t* lhs_sum;
  int first;
  float* dst;
};

// In 16 bits a whole group fits: a lane gets 32 products of 127 * 8 at most.
template <int kRows, int kWide>
[[gnu::noinline]] void q4_block(Block<kRows, kWide> b, const uint8_t* at) {
  const int64_t groups = b.t.k / b.t.group;
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* header = at + 8 * b.first;
    at += kHeaderBytes;
    Products acc[kRows][kWide] = {};
    for (int k = 0; k < b.t.group; k += 32, b.lhs += 32, at += 4 * kRowBytes) {
      for (int i = 0; i < 4; ++i) prefetch(at + i * kRowBytes);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        int8x16_t low[kRows], high[kRows];
        for (int r = 0; r < kRows; ++r) {
          low[r] = repeat(b.lhs + r * b.t.k + 4 * j);
          high[r] = repeat(b.lhs + r * b.t.k + 16 + 4 * j);
        }
        for (int q = 0; q < kWide; ++q) {
          const Nibbles w = unpack(load_row(at + j * kRowBytes, b.first + q));
          for (int r = 0; r < kRows; ++r) multiply_add(acc[r][q], w.low, low[r]);
          for (int r = 0; r < kRows; ++r) multiply_add(acc[r][q], w.high, high[r]);
        }
      }
    }
#pragma GCC unroll 2
    for (int q = 0; q < kWide; q += 2) {
      const Scales scales = load_scales(header + 8 * q, b.t.scale_type);
      const int16x8_t zeros = load_zeros<0>(header - 4 * b.first + kZerosAt + 4 * q);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const float a = b.lhs_scale[r * groups + g];
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const Products& p = acc[r][q + i];
          const int32x4_t sum = vpaddq_s32(vpaddlq_s16(p.left), vpaddlq_s16(p.right));
          const int32x4_t start = vaddq_s32(sum, vdupq_n_s32(Plain::kBits));
          float* to = b.dst + r * b.t.dst_stride + 4 * (b.first + q + i);
          const float32x4_t f = to_float<Plain>(add_zeros(start, zeros, i, b.lhs_sum + r * groups + g));
          vst1q_f32(to, vfmaq_f32(vld1q_f32(to), f, vmulq_n_f32(scales.quad[i], a)));
        }
      }
    }
  }
}

// In 16 bits two products of 127 * 128 fit.
template <int kRows, int kWide>
[[gnu::noinline]] void q8_block(Block<kRows, kWide> b, const uint8_t* at) {
  const int64_t groups = b.t.k / b.t.group;
  for (int64_t g = 0; g < groups; ++g) {
    struct {
      int32x4_t left, right;
    } acc[kRows][kWide] = {};
    for (int k = 0; k < b.t.group; k += 8, b.lhs += 8, at += 2 * kRowBytes) {
      for (int i = 0; i < 2; ++i) prefetch(at + i * kRowBytes);
      for (int q = 0; q < kWide; ++q) {
        const int8x16_t first = load_row(at, b.first + q), second = load_row(at + kRowBytes, b.first + q);
        for (int r = 0; r < kRows; ++r) {
          Products p = multiply(first, repeat(b.lhs + r * b.t.k));
          multiply_add(p, second, repeat(b.lhs + r * b.t.k + 4));
          acc[r][q].left = vpadalq_s16(acc[r][q].left, p.left);
          acc[r][q].right = vpadalq_s16(acc[r][q].right, p.right);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const float32x4_t a = vdupq_n_f32(b.lhs_scale[r * groups + g]);
#pragma GCC unroll 4
      for (int q = 0; q < kWide; ++q) {
        const int32x4_t sum = vpaddq_s32(acc[r][q].left, acc[r][q].right);
        float* to = b.dst + r * b.t.dst_stride + 4 * (b.first + q);
        const float32x4_t f = to_float<Plain>(vaddq_s32(sum, vdupq_n_s32(Plain::kBits)));
        vst1q_f32(to, vfmaq_f32(vld1q_f32(to), f, a));
      }
    }
  }
}

template <int kRows, int kWide, class Run>
[[gnu::always_inline]] inline void for_each_part(const Tile& t, int64_t row, float* dst, Run run) {
  const int64_t groups = t.k / t.group;
  clear(dst, t.dst_stride, kRows);
  for (int first = 0; first < kQuads; first += kWide)
    run(Block<kRows, kWide>{t, static_cast<const int8_t*>(t.lhs) + row * t.k, t.lhs_scale + row * groups,
                            t.lhs_sum + row * groups, first, dst});
}

// One row takes a panel at a time, more rows half a panel: 16 accumulators at most.
constexpr int wide(int rows) { return rows == 1 ? 4 : 2; }

}  // namespace

void q4_neon(const Tile& t) {
  for_each_block<4>(t, [&](auto rows, const uint8_t* panel, int64_t row, float* dst) {
    constexpr int kRows = decltype(rows)::value, kWide = wide(kRows);
    for_each_part<kRows, kWide>(t, row, dst, [&](auto block) { q4_block<kRows, kWide>(block, panel); });
  });
}

void q8_neon(const Tile& t) {
  for_each_block<4>(t, [&](auto rows, const uint8_t* panel, int64_t row, float* dst) {
    constexpr int kRows = decltype(rows)::value, kWide = wide(kRows);
    for_each_part<kRows, kWide>(t, row, dst, [&](auto block) { q8_block<kRows, kWide>(block, panel + kHeaderBytes); });
    multiply_columns(dst, t.dst_stride, kRows, panel);
  });
}

}  // namespace axiond::linear
