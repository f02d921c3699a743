// What the NEON kernels share. All of it has internal linkage: each file is compiled for another level, and a function
// that the linker merges across files could bring a higher level's instructions into a lower one.
#pragma once

// GCC's scheduling before register allocation moves loads up until the accumulators of a tile no longer fit into the
// 32 registers; the cores reorder by themselves.
#pragma GCC optimize("no-schedule-insns")

#include <arm_neon.h>

#include <algorithm>
#include <iterator>
#include <type_traits>

#include "linear.h"

namespace axiond::linear {

// Of the base level, for the table in level_neon.cc.
void q4_neon(const Tile& t);
void q8_neon(const Tile& t);
void q4_exact_neon(const Tile& t);
void bf16_neon(const Tile& t);
void quantize_neon(const void* x, Dtype type, int64_t k, int group, int8_t* q, int64_t chunk_stride, float* scale,
                   int32_t* sum);
void finish_neon(const float* f, const void* bias, void* dst, Dtype type, int64_t n);
void split_neon(const void* x, Dtype type, int64_t k, uint16_t* high, uint16_t* low, int64_t chunk_stride);

namespace {

constexpr int kQuads = 4;              // of 4 columns in a panel
constexpr int kZerosAt = 2 * kColumns;  // in a q4 header

// An int32 sum that starts from these bits is a float when it ends: 12582912 + i has the bits of 12582912 plus i for
// |i| < 2^22, and 786432 + i / 16 those of 786432 plus i. One subtraction, which is exact, then replaces a conversion.
// Nibbles are cheapest to unpack as 16 * (q - 8), of which a group's sum is at most 127 * 128 * 16 * 15 < 2^22.
struct Plain {
  static constexpr int32_t kBits = 0x4b400000;
  static constexpr float kValue = 12582912.0f;
};
struct Times8 {
  static constexpr int32_t kBits = 0x49c00000;
  static constexpr float kValue = 1572864.0f;
};
struct Times16 {
  static constexpr int32_t kBits = 0x49400000;
  static constexpr float kValue = 786432.0f;
};

template <class Start>
[[gnu::always_inline]] inline float32x4_t to_float(int32x4_t acc) {
  return vsubq_f32(vreinterpretq_f32_s32(acc), vdupq_n_f32(Start::kValue));
}

[[gnu::always_inline]] inline int8x16_t load_row(const uint8_t* row, int quad) {
  return vreinterpretq_s8_u8(vld1q_u8(row + 16 * quad));
}

struct Nibbles {
  int8x16_t low, high;
};

[[gnu::always_inline]] inline Nibbles unpack_times_16(int8x16_t packed) {
  return {vshlq_n_s8(packed, 4), vandq_s8(packed, vdupq_n_s8(int8_t(0xf0)))};
}

[[gnu::always_inline]] inline Nibbles unpack(int8x16_t packed) {
  return {vshrq_n_s8(vshlq_n_s8(packed, 4), 4), vshrq_n_s8(packed, 4)};
}

struct Eight {
  float32x4_t low, high;
};

template <Dtype type>
[[gnu::always_inline]] inline Eight widen(uint16x8_t halves) {
  if constexpr (type == Dtype::bf16)
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(halves), 16)),
            vreinterpretq_f32_u32(vshll_high_n_u16(halves, 16))};
  const float16x8_t f16 = vreinterpretq_f16_u16(halves);
  return {vcvt_f32_f16(vget_low_f16(f16)), vcvt_high_f32_f16(f16)};
}

// Of 8 columns.
struct Scales {
  float32x4_t quad[2];
};

[[gnu::always_inline]] inline Scales load_scales(const uint8_t* from, Dtype type) {
  const uint16x8_t bits = vld1q_u16(reinterpret_cast<const uint16_t*>(from));
  const Eight s = type == Dtype::bf16 ? widen<Dtype::bf16>(bits) : widen<Dtype::f16>(bits);
  return {s.low, s.high};
}

// 8 - zero point of 8 columns, shifted left. In 16 bits, where a group's sum fits too, their product is one SMLAL.
template <int kShift>
[[gnu::always_inline]] inline int16x8_t load_zeros(const uint8_t* from) {
  return vshll_n_s8(vreinterpret_s8_u8(vld1_u8(from)), kShift);
}

[[gnu::always_inline]] inline int32x4_t add_zeros(int32x4_t acc, int16x8_t zeros, int quad, const int32_t* lhs_sum) {
  const int16x4_t sum = vreinterpret_s16_s32(int32x2_t{*lhs_sum, 0});
  return quad == 0 ? vmlal_lane_s16(acc, vget_low_s16(zeros), sum, 0) : vmlal_high_lane_s16(acc, zeros, sum, 0);
}

[[gnu::always_inline]] inline void clear(float* dst, int64_t stride, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r)
    for (int q = 0; q < kQuads; ++q) vst1q_f32(dst + r * stride + 4 * q, vdupq_n_f32(0));
}

// bfloat16 of -16..15, in bytes, for q - zero point in exact q4.
struct Bf16Table {
  uint8_t low[32], high[32];
  constexpr Bf16Table() : low(), high() {
    for (int i = 0; i < 32; ++i) {
      const int size = i < 16 ? 16 - i : i - 16;
      int log = 0;
      while (size >> (log + 1)) ++log;
      const int bits = size == 0 ? 0 : (i < 16) << 15 | (127 + log) << 7 | ((size << (7 - log)) & 127);
      low[i] = uint8_t(bits);
      high[i] = uint8_t(bits >> 8);
    }
  }
};
constexpr Bf16Table kBf16;

struct Bf16Decoder {
  uint8x16x2_t low = {{vld1q_u8(kBf16.low), vld1q_u8(kBf16.low + 16)}};
  uint8x16x2_t high = {{vld1q_u8(kBf16.high), vld1q_u8(kBf16.high + 16)}};

  // 16 values, each with 16 added, to 16 halves in their order.
  [[gnu::always_inline]] uint16x8x2_t operator()(int8x16_t values) const {
    const uint8x16_t i = vreinterpretq_u8_s8(values), a = vqtbl2q_u8(low, i), b = vqtbl2q_u8(high, i);
    return {{vreinterpretq_u16_u8(vzip1q_u8(a, b)), vreinterpretq_u16_u8(vzip2q_u8(a, b))}};
  }
};

// 16 + 8 - zero point, spread over a vector whose byte b belongs to column first + (b >> shift) % 4.
[[gnu::always_inline]] inline int8x16_t spread_zeros(const uint8_t* header, int first, int shift) {
  constexpr uint8_t kBytes[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const uint8x16_t index = vshlq_u8(vld1q_u8(kBytes), vdupq_n_s8(int8_t(-shift)));
  const uint8x16_t column = vaddq_u8(vandq_u8(index, vdupq_n_u8(3)), vdupq_n_u8(uint8_t(first)));
  const int8x16_t zeros = vreinterpretq_s8_u8(vld1q_u8(header + kZerosAt));
  return vaddq_s8(vqtbl1q_s8(zeros, column), vdupq_n_s8(16));
}

// The end of q8: float scales of the columns, from the panel's header.
[[gnu::always_inline]] inline void multiply_columns(float* dst, int64_t stride, int64_t rows, const uint8_t* header) {
  for (int q = 0; q < kQuads; ++q) {
    const float32x4_t s = vld1q_f32(reinterpret_cast<const float*>(header) + 4 * q);
    for (int64_t r = 0; r < rows; ++r) {
      float* at = dst + r * stride + 4 * q;
      vst1q_f32(at, vmulq_f32(vld1q_f32(at), s));
    }
  }
}

// Calls run(integral_constant<rows>, panel, first row, dst) for every panel and every kMax rows of it, and the rest.
template <int kMax, class Run>
[[gnu::always_inline]] inline void for_each_block(const Tile& t, Run run) {
  for (int64_t p = 0; p < t.panels; ++p)
    for (int64_t r = 0; r < t.rows; r += kMax) {
      const uint8_t* panel = t.rhs + p * t.panel_bytes;
      float* dst = t.dst + r * t.dst_stride + p * kColumns;
      switch (std::min<int64_t>(t.rows - r, kMax)) {
        case 1: run(std::integral_constant<int, 1>(), panel, r, dst); break;
        case 2: run(std::integral_constant<int, 2>(), panel, r, dst); break;
        case 3: run(std::integral_constant<int, 3>(), panel, r, dst); break;
        default: run(std::integral_constant<int, kMax>(), panel, r, dst);
      }
    }
}

// Weights are read once and from memory; the hardware's own prefetch stops at each page.
[[gnu::always_inline]] inline void prefetch(const uint8_t* weights) {
  __builtin_prefetch(weights + 1024, 0, 0);
}

}  // namespace
}  // namespace axiond::linear
