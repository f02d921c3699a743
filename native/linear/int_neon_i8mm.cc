// SMMLA: an accumulator is 2 rows x 2 columns, an operand 2 columns (or rows) x 8 k. ZIP of two rows of 64 bytes that
// follow each other in k gives the operands of the weights.
//
// Up to 8 rows unpack the weights as they go. More rows unpack a chunk of a panel once and all multiply by it.
#ifndef __ARM_FEATURE_MATMUL_INT8
#error "compile with +i8mm"
#endif

#include "neon.h"

namespace axiond::linear {
namespace {

constexpr int kPairs = 8;     // of columns in a panel
constexpr int kHalf = 4;      // pairs of columns in a tile, which is 8 x 8
constexpr int kChunk = 512;   // k that are unpacked at a time: 8 KiB of operands
constexpr int kMaxRows = 128;

template <int kRowPairs>
struct Sums {
  int32x4_t at[kRowPairs][kHalf];
};

// Row pairs of activations, from the same k on.
struct Lhs {
  const int8_t* at;
  int64_t stride;  // from one pair of rows to the next
  [[gnu::always_inline]] int8x16_t operand(int pair, int step) const {
    return vld1q_s8(at + pair * stride + 16 * step);
  }
};

template <int kRowPairs>
[[gnu::always_inline]] inline void start(Sums<kRowPairs>& acc, int32_t bits) {
  for (int p = 0; p < kRowPairs; ++p)
    for (int c = 0; c < kHalf; ++c) acc.at[p][c] = vdupq_n_s32(bits);
}

// 8 k of one pair of columns.
template <int kRowPairs>
[[gnu::always_inline]] inline void multiply(Sums<kRowPairs>& acc, int c, int8x16_t weights,
                                            const int8x16_t (&lhs)[kRowPairs]) {
  for (int p = 0; p < kRowPairs; ++p) acc.at[p][c] = vmmlaq_s32(acc.at[p][c], lhs[p], weights);
}

[[gnu::always_inline]] inline int8x16_t zip_low(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}

[[gnu::always_inline]] inline int8x16_t zip_high(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s32(vzip2q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}

struct Row {
  int32x4_t quad[2];
};

// 8 columns of one row of a pair, from the accumulators of the pair.
[[gnu::always_inline]] inline Row row_of(const int32x4_t (&acc)[kHalf], int row) {
  Row to;
#pragma GCC unroll 2
  for (int q = 0; q < 2; ++q) {
    const int64x2_t left = vreinterpretq_s64_s32(acc[2 * q]), right = vreinterpretq_s64_s32(acc[2 * q + 1]);
    to.quad[q] = vreinterpretq_s32_s64(row == 0 ? vzip1q_s64(left, right) : vzip2q_s64(left, right));
  }
  return to;
}

// Calls add(row, sums) for each row of the tile; the last of them may be missing.
template <int kRowPairs, class Add>
[[gnu::always_inline]] inline void add_rows(const Sums<kRowPairs>& acc, bool is_odd, Add add) {
#pragma GCC unroll 4
  for (int p = 0; p < kRowPairs; ++p) {
    add(2 * p, row_of(acc.at[p], 0));
    if (p == kRowPairs - 1 && is_odd) return;
    add(2 * p + 1, row_of(acc.at[p], 1));
  }
}

// 16 of a block's 32 k: k = 8i.. from the low nibbles and 16 + 8i.. from the high ones.
template <int kRowPairs>
[[gnu::always_inline]] inline void q4_rows(const uint8_t* rows, const Lhs& lhs, int i, Sums<kRowPairs>& acc) {
  int8x16_t low[kRowPairs], high[kRowPairs];
  for (int p = 0; p < kRowPairs; ++p) {
    low[p] = lhs.operand(p, i);
    high[p] = lhs.operand(p, 2 + i);
  }
  for (int q = 0; q < kHalf / 2; ++q) {
    const int8x16_t first = load_row(rows, q), second = load_row(rows + kRowBytes, q);
    const Nibbles left = unpack_times_16(zip_low(first, second)), right = unpack_times_16(zip_high(first, second));
    multiply(acc, 2 * q, left.low, low);
    multiply(acc, 2 * q, left.high, high);
    multiply(acc, 2 * q + 1, right.low, low);
    multiply(acc, 2 * q + 1, right.high, high);
  }
}

// 8 columns, from the packed weights. `at` is the panel, `half` says which columns.
template <int kRowPairs>
[[gnu::noinline]] void q4_packed(const Tile& t, const uint8_t* at, int half, float* dst) {
  const int64_t groups = t.k / t.group;
  const bool is_odd = t.rows % 2 != 0;
  Lhs lhs{static_cast<const int8_t*>(t.lhs), 2 * t.k};
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* header = at;
    at += kHeaderBytes;
    Sums<kRowPairs> acc;
    start(acc, Times16::kBits);
    for (int k = 0; k < t.group; k += 32, lhs.at += 64, at += 4 * kRowBytes) {
      for (int i = 0; i < 4; ++i) prefetch(at + i * kRowBytes);
      q4_rows<kRowPairs>(at + 32 * half, lhs, 0, acc);
      q4_rows<kRowPairs>(at + 2 * kRowBytes + 32 * half, lhs, 1, acc);
    }
    const Scales scales = load_scales(header + 16 * half, t.scale_type);
    const int16x8_t zeros = load_zeros<4>(header + kZerosAt + 8 * half);
    add_rows(acc, is_odd, [&](int r, const Row& sums) {
      const int32_t* lhs_sum = t.lhs_sum + r * groups + g;
      const float a = t.lhs_scale[r * groups + g];
#pragma GCC unroll 2
      for (int q = 0; q < 2; ++q) {
        float* to = dst + r * t.dst_stride + 4 * q;
        const float32x4_t sum = to_float<Times16>(add_zeros(sums.quad[q], zeros, q, lhs_sum));
        vst1q_f32(to, vfmaq_f32(vld1q_f32(to), sum, vmulq_n_f32(scales.quad[q], a)));
      }
    });
  }
}

// Operands of a chunk of a panel: per half of the columns, per 8 k, 4 pairs of columns.
struct Operands {
  alignas(64) int8_t at[2][kChunk / 8][kHalf][16];
  float scale[kChunk / 32][kColumns];  // of q4
};

// Writes 8 * (q - zero point): halving 16 * (q - 8) - 16 * (zero point - 8), each of which fits into 8 bits. So the
// zero points are dealt with once for all rows, and no sums of activations are needed.
void unpack_q4(const uint8_t* at, int groups, int group, Dtype scale_type, Operands& to) {
  int step = 0;
  for (int g = 0; g < groups; ++g) {
    for (int q = 0; q < kQuads; ++q)
      vst1q_f32(to.scale[g] + 4 * q, load_scales(at + q / 2 * 16, scale_type).quad[q % 2]);
    const int8x16_t zeros = vnegq_s8(vshlq_n_s8(vreinterpretq_s8_u8(vld1q_u8(at + kZerosAt)), 4));
    int8x16_t zero[kPairs];
    for (int c = 0; c < kPairs; ++c) {
      const uint8x16_t columns = vcombine_u8(vdup_n_u8(uint8_t(2 * c)), vdup_n_u8(uint8_t(2 * c + 1)));
      zero[c] = vqtbl1q_s8(zeros, columns);
    }
    at += kHeaderBytes;
    for (int k = 0; k < group; k += 32, step += 4, at += 4 * kRowBytes)
      for (int i = 0; i < 2; ++i)
        for (int q = 0; q < kQuads; ++q) {
          const int8x16_t first = load_row(at + 2 * i * kRowBytes, q);
          const int8x16_t second = load_row(at + (2 * i + 1) * kRowBytes, q);
          const Nibbles left = unpack_times_16(zip_low(first, second));
          const Nibbles right = unpack_times_16(zip_high(first, second));
          auto* low = to.at[q / 2][step + i][q % 2 * 2];
          auto* high = to.at[q / 2][step + 2 + i][q % 2 * 2];
          vst1q_s8(low, vhsubq_s8(left.low, zero[2 * q]));
          vst1q_s8(low + 16, vhsubq_s8(right.low, zero[2 * q + 1]));
          vst1q_s8(high, vhsubq_s8(left.high, zero[2 * q]));
          vst1q_s8(high + 16, vhsubq_s8(right.high, zero[2 * q + 1]));
        }
  }
}

void unpack_q8(const uint8_t* at, int k, Operands& to) {
  for (int step = 0; step < k / 8; ++step, at += 2 * kRowBytes)
    for (int q = 0; q < kQuads; ++q) {
      const int8x16_t first = load_row(at, q), second = load_row(at + kRowBytes, q);
      vst1q_s8(to.at[q / 2][step][q % 2 * 2], zip_low(first, second));
      vst1q_s8(to.at[q / 2][step][q % 2 * 2 + 1], zip_high(first, second));
    }
}

// Where a tile stands: rows from r on, 8 columns (a half of a panel), groups from g on.
struct Place {
  int64_t r;
  int half;
  int64_t g;
  int groups;
};

// Up to 8 x 8, from a chunk's operands.
template <int kRowPairs, bool kIsQ4>
[[gnu::noinline]] void multiply_tile(const Tile& t, const Operands& rhs, Place at, float* dst) {
  using Start = std::conditional_t<kIsQ4, Times8, Plain>;
  const int64_t groups = t.k / t.group;
  const bool is_odd = (t.rows - at.r) % 2 != 0 && t.rows - at.r < 2 * kRowPairs;
  Lhs lhs{static_cast<const int8_t*>(t.lhs) + at.r * t.k + 2 * at.g * t.group, 2 * t.k};
  const int8_t* weights = rhs.at[at.half][0][0];
  const float* lhs_scale = t.lhs_scale + at.r * groups + at.g;
  dst += at.r * t.dst_stride + 8 * at.half;
  for (int g = 0; g < at.groups; ++g) {
    Sums<kRowPairs> acc;
    start(acc, Start::kBits);
    for (const int8_t* end = weights + t.group * kHalf * 2; weights < end; lhs.at += 16, weights += 16 * kHalf) {
      int8x16_t a[kRowPairs];
      for (int p = 0; p < kRowPairs; ++p) a[p] = lhs.operand(p, 0);
      for (int c = 0; c < kHalf; ++c) multiply(acc, c, vld1q_s8(weights + 16 * c), a);
    }
    const float* s = rhs.scale[g] + 8 * at.half;
    const float32x4_t scales[] = {vld1q_f32(s), vld1q_f32(s + 4)};
    add_rows(acc, is_odd, [&](int r, const Row& sums) {
      const float a = lhs_scale[r * groups + g];
#pragma GCC unroll 2
      for (int q = 0; q < 2; ++q) {
        float* to = dst + r * t.dst_stride + 4 * q;
        const float32x4_t scale = kIsQ4 ? vmulq_n_f32(scales[q], a) : vdupq_n_f32(a);
        vst1q_f32(to, vfmaq_f32(vld1q_f32(to), to_float<Start>(sums.quad[q]), scale));
      }
    });
  }
}

template <bool kIsQ4>
void multiply_chunk(const Tile& t, const Operands& rhs, int64_t g, int groups, float* dst) {
  constexpr void (*kTiles[])(const Tile&, const Operands&, Place, float*) = {
      multiply_tile<1, kIsQ4>, multiply_tile<2, kIsQ4>, multiply_tile<3, kIsQ4>, multiply_tile<4, kIsQ4>};
  for (int64_t r = 0; r < t.rows; r += 8)
    for (int half = 0; half < 2; ++half)
      kTiles[std::min<int64_t>((t.rows - r + 1) / 2, 4) - 1](t, rhs, {r, half, g, groups}, dst);
}

template <bool kIsQ4>
void chunked(const Tile& t) {
  const int64_t chunk = kChunk / t.group, groups = t.k / t.group;
  Operands operands;
  for (int64_t p = 0; p < t.panels; ++p) {
    const uint8_t* panel = t.rhs + p * t.panel_bytes;
    float* dst = t.dst + p * kColumns;
    clear(dst, t.dst_stride, t.rows);
    for (int64_t g = 0; g < groups; g += chunk) {
      const int count = int(std::min(groups - g, chunk));
      if constexpr (kIsQ4)
        unpack_q4(panel + g * (kHeaderBytes + t.group / 2 * kColumns), count, t.group, t.scale_type, operands);
      else
        unpack_q8(panel + kHeaderBytes + g * t.group * kColumns, count * t.group, operands);
      multiply_chunk<kIsQ4>(t, operands, g, count, dst);
    }
    if constexpr (!kIsQ4) multiply_columns(dst, t.dst_stride, t.rows, panel);
  }
}

void q4_packed_tile(const Tile& t) {
  constexpr void (*kTiles[])(const Tile&, const uint8_t*, int, float*) = {q4_packed<1>, q4_packed<2>, q4_packed<3>,
                                                                          q4_packed<4>};
  for (int64_t p = 0; p < t.panels; ++p) {
    clear(t.dst + p * kColumns, t.dst_stride, t.rows);
    for (int half = 0; half < 2; ++half)
      kTiles[(t.rows + 1) / 2 - 1](t, t.rhs + p * t.panel_bytes, half, t.dst + p * kColumns + 8 * half);
  }
}

constexpr Kernel kKernels[] = {
    {"matmul_f32_qs8_qs4p16x4_128x16_neon_i8mm", Op::q4, Isa::neon_i8mm, 9, kMaxRows, 4, LhsLayout::pairs,
     chunked<true>},
    {"matmul_f32_qs8_qs4p16x4_8x8_neon_i8mm", Op::q4, Isa::neon_i8mm, 4, 8, 8, LhsLayout::pairs, q4_packed_tile},
    {"matmul_f32_qs8_qs8p16x4_128x16_neon_i8mm", Op::q8, Isa::neon_i8mm, 4, kMaxRows, 4, LhsLayout::pairs,
     chunked<false>},
};

}  // namespace

const Level kNeonI8mm = {kKernels, int(std::size(kKernels)), {}};

}  // namespace axiond::linear
