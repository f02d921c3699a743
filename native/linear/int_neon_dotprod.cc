// SDOT by lane: a row of 64 bytes is four operands of 4 columns x 4 k, and lane j of 16 activations their partner.
#ifndef __ARM_FEATURE_DOTPROD
#error "compile with +dotprod"
#endif

#include "neon.h"

namespace axiond::linear {
namespace {

template <int kLane>
[[gnu::always_inline]] inline void dot(int32x4_t& acc, int8x16_t weights, int8x16_t lhs) {
  acc = vdotq_laneq_s32(acc, weights, lhs, kLane);
}

// Float sums of a block, 16 columns wide: in registers if there are few, else in dst.
template <int kRows>
struct Totals {
  static constexpr bool kHeld = kRows <= 2;
  float* dst;
  int64_t stride;
  float32x4_t held[kRows][kQuads];

  [[gnu::always_inline]] Totals(float* to, int64_t to_stride) : dst(to), stride(to_stride) {
    for (int r = 0; r < kRows; ++r)
      for (int q = 0; q < kQuads; ++q) {
        if constexpr (kHeld)
          held[r][q] = vdupq_n_f32(0);
        else
          vst1q_f32(dst + r * stride + 4 * q, vdupq_n_f32(0));
      }
  }
  [[gnu::always_inline]] void add(int r, int q, float32x4_t acc, float32x4_t scale) {
    if constexpr (kHeld) {
      held[r][q] = vfmaq_f32(held[r][q], acc, scale);
    } else {
      float* to = dst + r * stride + 4 * q;
      vst1q_f32(to, vfmaq_f32(vld1q_f32(to), acc, scale));
    }
  }
  [[gnu::always_inline]] void store() {
    if constexpr (kHeld)
      for (int r = 0; r < kRows; ++r)
        for (int q = 0; q < kQuads; ++q) vst1q_f32(dst + r * stride + 4 * q, held[r][q]);
  }
};

template <int kRows>
struct Sums {
  int32x4_t at[kRows][kQuads];
};

// Row kLane of a block of 32 k, for all columns.
template <int kLane, int kRows>
[[gnu::always_inline]] inline void q4_row(const uint8_t* row, const int8x16_t (&low)[kRows],
                                          const int8x16_t (&high)[kRows], Sums<kRows>& acc) {
  for (int q = 0; q < kQuads; ++q) {
    const Nibbles w = unpack_times_16(load_row(row, q));
    for (int r = 0; r < kRows; ++r) dot<kLane>(acc.at[r][q], w.low, low[r]);
    for (int r = 0; r < kRows; ++r) dot<kLane>(acc.at[r][q], w.high, high[r]);
  }
}

template <int kRows>
[[gnu::always_inline]] inline void q4_block(const uint8_t* block, const int8_t* lhs, int64_t stride, Sums<kRows>& acc) {
  int8x16_t low[kRows], high[kRows];
  for (int r = 0; r < kRows; ++r) {
    low[r] = vld1q_s8(lhs + r * stride);
    high[r] = vld1q_s8(lhs + r * stride + 16);
  }
  q4_row<0>(block, low, high, acc);
  q4_row<1>(block + kRowBytes, low, high, acc);
  q4_row<2>(block + 2 * kRowBytes, low, high, acc);
  q4_row<3>(block + 3 * kRowBytes, low, high, acc);
}

template <int kRows>
[[gnu::noinline]] void q4_panel(const Tile& t, const uint8_t* at, int64_t row, float* dst) {
  const int64_t groups = t.k / t.group;
  const auto* lhs = static_cast<const int8_t*>(t.lhs) + row * t.k;
  const float* lhs_scale = t.lhs_scale + row * groups;
  const int32_t* lhs_sum = t.lhs_sum + row * groups;
  Totals<kRows> totals(dst, t.dst_stride);
  for (int64_t g = 0; g < groups; ++g) {
    const int16x8_t zeros[] = {load_zeros<4>(at + kZerosAt), load_zeros<4>(at + kZerosAt + 8)};
    const uint8_t* header = at;
    Sums<kRows> acc;
    for (int r = 0; r < kRows; ++r)
      for (int q = 0; q < kQuads; ++q)
        acc.at[r][q] = add_zeros(vdupq_n_s32(Times16::kBits), zeros[q / 2], q % 2, lhs_sum + r * groups + g);
    at += kHeaderBytes;
    for (int k = 0; k < t.group; k += 32, lhs += 32, at += 4 * kRowBytes) {
      for (int i = 0; i < 4; ++i) prefetch(at + i * kRowBytes);
      q4_block<kRows>(at, lhs, t.k, acc);
    }
    const Scales scales[] = {load_scales(header, t.scale_type), load_scales(header + 16, t.scale_type)};
    for (int r = 0; r < kRows; ++r) {
      const float a = lhs_scale[r * groups + g];
      for (int q = 0; q < kQuads; ++q)
        totals.add(r, q, to_float<Times16>(acc.at[r][q]), vmulq_n_f32(scales[q / 2].quad[q % 2], a));
    }
  }
  totals.store();
}

template <int kLane, int kRows>
[[gnu::always_inline]] inline void q8_row(const uint8_t* row, const int8x16_t (&lhs)[kRows], Sums<kRows>& acc) {
  for (int q = 0; q < kQuads; ++q) {
    const int8x16_t w = load_row(row, q);
    for (int r = 0; r < kRows; ++r) dot<kLane>(acc.at[r][q], w, lhs[r]);
  }
}

template <int kRows>
[[gnu::noinline]] void q8_panel(const Tile& t, const uint8_t* panel, int64_t row, float* dst) {
  const int64_t groups = t.k / t.group;
  const auto* lhs = static_cast<const int8_t*>(t.lhs) + row * t.k;
  const float* lhs_scale = t.lhs_scale + row * groups;
  const uint8_t* at = panel + kHeaderBytes;
  Totals<kRows> totals(dst, t.dst_stride);
  for (int64_t g = 0; g < groups; ++g) {
    Sums<kRows> acc;
    for (int r = 0; r < kRows; ++r)
      for (int q = 0; q < kQuads; ++q) acc.at[r][q] = vdupq_n_s32(Plain::kBits);
    for (int k = 0; k < t.group; k += 16, lhs += 16, at += 4 * kRowBytes) {
      int8x16_t a[kRows];
      for (int r = 0; r < kRows; ++r) a[r] = vld1q_s8(lhs + r * t.k);
      for (int i = 0; i < 4; ++i) prefetch(at + i * kRowBytes);
      q8_row<0>(at, a, acc);
      q8_row<1>(at + kRowBytes, a, acc);
      q8_row<2>(at + 2 * kRowBytes, a, acc);
      q8_row<3>(at + 3 * kRowBytes, a, acc);
    }
    for (int r = 0; r < kRows; ++r) {
      const float32x4_t a = vdupq_n_f32(lhs_scale[r * groups + g]);
      for (int q = 0; q < kQuads; ++q) totals.add(r, q, to_float<Plain>(acc.at[r][q]), a);
    }
  }
  totals.store();
  multiply_columns(dst, t.dst_stride, kRows, panel);
}

void q4_tile(const Tile& t) {
  for_each_block<4>(t, [&](auto rows, const uint8_t* panel, int64_t row, float* dst) {
    q4_panel<decltype(rows)::value>(t, panel, row, dst);
  });
}

void q8_tile(const Tile& t) {
  for_each_block<4>(t, [&](auto rows, const uint8_t* panel, int64_t row, float* dst) {
    q8_panel<decltype(rows)::value>(t, panel, row, dst);
  });
}

constexpr Kernel kKernels[] = {
    {"matmul_f32_qs8_qs4p16x4_4x16_neon_dotprod", Op::q4, Isa::neon_dotprod, 4, 32, 4, LhsLayout::rows, q4_tile},
    {"matmul_f32_qs8_qs4p16x4_1x16_neon_dotprod", Op::q4, Isa::neon_dotprod, 1, 3, 16, LhsLayout::rows, q4_tile},
    {"matmul_f32_qs8_qs8p16x4_4x16_neon_dotprod", Op::q8, Isa::neon_dotprod, 4, 32, 4, LhsLayout::rows, q8_tile},
    {"matmul_f32_qs8_qs8p16x4_1x16_neon_dotprod", Op::q8, Isa::neon_dotprod, 1, 3, 16, LhsLayout::rows, q8_tile},
};

}  // namespace

const Level kNeonDotprod = {kKernels, int(std::size(kKernels)), {}};

}  // namespace axiond::linear
