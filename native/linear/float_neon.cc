// bfloat16 is the upper half of a float: a shift widens the even k of a row, a mask the odd ones.
#include "neon.h"

namespace axiond::linear {
namespace {

constexpr int kRowK = 2;  // k in a row of 64 bytes

// One row or two have two chains of sums per quad, or additions would wait for each other.
template <int kRows>
struct Sums {
  static constexpr int kChains = kRows <= 2 ? 2 : 1;
  float32x4_t at[kRows * kChains][kQuads] = {};

  [[gnu::always_inline]] float32x4_t total(int r, int q) const {
    if constexpr (kChains == 2) return vaddq_f32(at[r][q], at[r + kRows][q]);
    return at[r][q];
  }
};

// Two k, which are lanes kLane and kLane + 1 of the activations.
template <int kLane, int kRows>
[[gnu::always_inline]] inline void multiply_row(const uint8_t* row, const float32x4_t (&lhs)[kRows], Sums<kRows>& acc) {
  constexpr int kOdd = (Sums<kRows>::kChains - 1) * kRows;
  for (int q = 0; q < kQuads; ++q) {
    const uint32x4_t w = vreinterpretq_u32_s8(load_row(row, q));
    const float32x4_t even = vreinterpretq_f32_u32(vshlq_n_u32(w, 16));
    const float32x4_t odd = vreinterpretq_f32_u32(vandq_u32(w, vdupq_n_u32(0xffff0000)));
    for (int r = 0; r < kRows; ++r) acc.at[r][q] = vfmaq_laneq_f32(acc.at[r][q], even, lhs[r], kLane);
    for (int r = 0; r < kRows; ++r) acc.at[r + kOdd][q] = vfmaq_laneq_f32(acc.at[r + kOdd][q], odd, lhs[r], kLane + 1);
  }
}

template <int kRows>
[[gnu::always_inline]] inline void multiply(const uint8_t* at, const uint16_t* lhs, int64_t stride, int64_t k,
                                            Sums<kRows>& acc) {
  for (const uint16_t* end = lhs + k; lhs < end; lhs += 4, at += 2 * kRowBytes) {
    float32x4_t a[kRows];
    for (int r = 0; r < kRows; ++r) a[r] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(lhs + r * stride), 16));
    for (int i = 0; i < 2; ++i) prefetch(at + i * kRowBytes);
    multiply_row<0>(at, a, acc);
    multiply_row<2>(at + kRowBytes, a, acc);
  }
}

template <int kRows>
[[gnu::noinline]] void bf16_block(const Tile& t, const uint8_t* panel, int64_t row, float* dst) {
  Sums<kRows> acc;
  multiply(panel, static_cast<const uint16_t*>(t.lhs) + row * t.k, t.k, t.k, acc);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int q = 0; q < kQuads; ++q) vst1q_f32(dst + r * t.dst_stride + 4 * q, acc.total(r, q));
}

// A group of q4 as a panel of bf16: q - zero point, which bfloat16 holds.
struct Unpacked {
  alignas(64) uint8_t at[kMaxGroup / kRowK * kRowBytes];
};

void unpack(const uint8_t* header, int group, Unpacked& to) {
  const Bf16Decoder decode;
  const uint8_t* at = header + kHeaderBytes;
  for (int k = 0; k < group; k += 32, at += 4 * kRowBytes)
    for (int j = 0; j < 4; j += 2)
      for (int q = 0; q < kQuads; ++q) {
        const int8x16_t zeros = spread_zeros(header, 4 * q, 1);
        const int16x8_t first = vreinterpretq_s16_s8(load_row(at + j * kRowBytes, q));
        const int16x8_t second = vreinterpretq_s16_s8(load_row(at + (j + 1) * kRowBytes, q));
        // k % 4 = 0, 1 and 2, 3; of row j in the lower and of row j + 1 in the upper half of a vector.
        const Nibbles pairs[] = {unpack(vreinterpretq_s8_s16(vuzp1q_s16(first, second))),
                                 unpack(vreinterpretq_s8_s16(vuzp2q_s16(first, second)))};
        for (int i = 0; i < 2; ++i)
          for (int high = 0; high < 2; ++high) {
            const uint16x8x2_t halves = decode(vaddq_s8(high ? pairs[i].high : pairs[i].low, zeros));
            uint8_t* row = to.at + (k / kRowK + high * 8 + 2 * j + i) * kRowBytes + 16 * q;
            vst1q_u8(row, vreinterpretq_u8_u16(halves.val[0]));
            vst1q_u8(row + 2 * kRowBytes, vreinterpretq_u8_u16(halves.val[1]));
          }
      }
}

template <int kRows>
[[gnu::noinline]] void q4_block(const Tile& t, const uint8_t* header, const Unpacked& rhs, const uint16_t* lhs,
                                float* dst) {
  Sums<kRows> acc;
  multiply(rhs.at, lhs, t.k, t.group, acc);
#pragma GCC unroll 4
  for (int q = 0; q < kQuads; ++q) {
    const float32x4_t s = load_scales(header + q / 2 * 16, t.scale_type).quad[q % 2];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      float* to = dst + r * t.dst_stride + 4 * q;
      vst1q_f32(to, vfmaq_f32(vld1q_f32(to), acc.total(r, q), s));
    }
  }
}

}  // namespace

void bf16_neon(const Tile& t) {
  for_each_block<4>(t, [&](auto rows, const uint8_t* panel, int64_t row, float* dst) {
    bf16_block<decltype(rows)::value>(t, panel, row, dst);
  });
}

void q4_exact_neon(const Tile& t) {
  Unpacked unpacked;
  const int64_t step = kHeaderBytes + t.group / 2 * kColumns;
  for (int64_t p = 0; p < t.panels; ++p) {
    Tile one = t;
    one.panels = 1;
    one.rhs = t.rhs + p * t.panel_bytes;
    one.dst = t.dst + p * kColumns;
    clear(one.dst, t.dst_stride, t.rows);
    for (int64_t k = 0; k < t.k; k += t.group, one.rhs += step) {
      unpack(one.rhs, t.group, unpacked);
      for_each_block<4>(one, [&](auto rows, const uint8_t* header, int64_t row, float* dst) {
        const auto* lhs = static_cast<const uint16_t*>(t.lhs) + row * t.k + k;
        q4_block<decltype(rows)::value>(t, header, unpacked, lhs, dst);
      });
    }
  }
}

}  // namespace axiond::linear
