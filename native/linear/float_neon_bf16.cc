// BFDOT by lane for a few rows of bfloat16 weights; BFMMLA, 2 rows x 2 columns x 4 k, for more rows and for exact q4.
#ifndef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
#error "compile with +bf16"
#endif

#include "neon.h"

namespace axiond::linear {
namespace {

constexpr int kHalf = 4;     // pairs of columns in a tile, which is 8 x 8
constexpr int kChunk = 256;  // k that are unpacked at a time: 8 KiB of operands

[[gnu::always_inline]] inline bfloat16x8_t load_bf16(const uint16_t* from) {
  return vreinterpretq_bf16_u16(vld1q_u16(from));
}

// Operands of a chunk of a panel: per half of the columns, per 4 k, 4 pairs of columns.
struct Operands {
  alignas(64) uint16_t at[2][kChunk / 4][kHalf][8];
};

// A group of q4: q - zero point, which bfloat16 holds.
void unpack_q4(const uint8_t* header, int group, Operands& to) {
  const Bf16Decoder decode;
  const uint8_t* row = header + kHeaderBytes;
  int8x16_t zeros[kQuads];
  for (int q = 0; q < kQuads; ++q) zeros[q] = spread_zeros(header, 4 * q, 2);
  for (int i = 0; i < group / 8; ++i, row += kRowBytes) {
    const int step = i / 4 * 8 + i % 4;  // of the low nibbles; the high ones are 16 k further on
    for (int q = 0; q < kQuads; ++q) {
      const Nibbles n = unpack(load_row(row, q));
      const uint16x8x2_t low = decode(vaddq_s8(n.low, zeros[q])), high = decode(vaddq_s8(n.high, zeros[q]));
      for (int c = 0; c < 2; ++c) {
        vst1q_u16(to.at[q / 2][step][q % 2 * 2 + c], low.val[c]);
        vst1q_u16(to.at[q / 2][step + 4][q % 2 * 2 + c], high.val[c]);
      }
    }
  }
}

void unpack_bf16(const uint8_t* at, int64_t k, Operands& to) {
  for (int step = 0; step < k / 4; ++step, at += 2 * kRowBytes) {
    for (int i = 0; i < 2; ++i) prefetch(at + i * kRowBytes);
    for (int q = 0; q < kQuads; ++q) {
      const int32x4_t first = vreinterpretq_s32_s8(load_row(at, q));
      const int32x4_t second = vreinterpretq_s32_s8(load_row(at + kRowBytes, q));
      vst1q_u16(to.at[q / 2][step][q % 2 * 2], vreinterpretq_u16_s32(vzip1q_s32(first, second)));
      vst1q_u16(to.at[q / 2][step][q % 2 * 2 + 1], vreinterpretq_u16_s32(vzip2q_s32(first, second)));
    }
  }
}

// Up to 8 rows from r on, 8 columns, `length` k from k on: dst += product * scale, for q4 with the header's scales.
template <int kRowPairs, bool kIsQ4>
[[gnu::noinline]] void multiply_tile(const Tile& t, const Operands& rhs, int64_t r, int half, int64_t k, int64_t length,
                                     const uint8_t* header) {
  const bool is_odd = t.rows - r < 2 * kRowPairs;
  const auto* lhs = static_cast<const uint16_t*>(t.lhs) + r * t.k + 2 * k;
  const uint16_t* weights = rhs.at[half][0][0];
  float32x4_t acc[kRowPairs][kHalf];
  for (auto& pair : acc)
    for (auto& sum : pair) sum = vdupq_n_f32(0);
  for (const uint16_t* end = lhs + 2 * length; lhs < end; lhs += 8, weights += 8 * kHalf) {
    bfloat16x8_t a[kRowPairs];
    for (int p = 0; p < kRowPairs; ++p) a[p] = load_bf16(lhs + p * 2 * t.k);
    for (int c = 0; c < kHalf; ++c) {
      const bfloat16x8_t w = load_bf16(weights + 8 * c);
      for (int p = 0; p < kRowPairs; ++p) acc[p][c] = vbfmmlaq_f32(acc[p][c], a[p], w);
    }
  }
  float* dst = t.dst + r * t.dst_stride + 8 * half;
  const Scales scales = load_scales(header + 16 * half, t.scale_type);
#pragma GCC unroll 4
  for (int p = 0; p < kRowPairs; ++p)
#pragma GCC unroll 2
    for (int row = 0; row < 2; ++row) {
      if (p == kRowPairs - 1 && row == 1 && is_odd) return;
#pragma GCC unroll 2
      for (int q = 0; q < 2; ++q) {
        const float64x2_t left = vreinterpretq_f64_f32(acc[p][2 * q]), right = vreinterpretq_f64_f32(acc[p][2 * q + 1]);
        const float32x4_t sum = vreinterpretq_f32_f64(row == 0 ? vzip1q_f64(left, right) : vzip2q_f64(left, right));
        float* to = dst + (2 * p + row) * t.dst_stride + 4 * q;
        const float32x4_t f = vld1q_f32(to);
        vst1q_f32(to, kIsQ4 ? vfmaq_f32(f, sum, scales.quad[q]) : vaddq_f32(f, sum));
      }
    }
}

template <bool kIsQ4>
void multiply_chunk(const Tile& t, const Operands& rhs, int64_t k, int64_t length, const uint8_t* header) {
  constexpr void (*kTiles[])(const Tile&, const Operands&, int64_t, int, int64_t, int64_t, const uint8_t*) = {
      multiply_tile<1, kIsQ4>, multiply_tile<2, kIsQ4>, multiply_tile<3, kIsQ4>, multiply_tile<4, kIsQ4>};
  for (int64_t r = 0; r < t.rows; r += 8)
    for (int half = 0; half < 2; ++half)
      kTiles[std::min<int64_t>((t.rows - r + 1) / 2, 4) - 1](t, rhs, r, half, k, length, header);
}

template <bool kIsQ4>
void chunked_tile(const Tile& t) {
  Operands operands;
  Tile one = t;
  for (int64_t p = 0; p < t.panels; ++p, one.dst += kColumns) {
    clear(one.dst, t.dst_stride, t.rows);
    const uint8_t* at = t.rhs + p * t.panel_bytes;
    const int64_t chunk = kIsQ4 ? t.group : kChunk;
    for (int64_t k = 0; k < t.k; k += chunk) {
      const int64_t length = std::min(t.k - k, chunk);
      if constexpr (kIsQ4)
        unpack_q4(at, t.group, operands);
      else
        unpack_bf16(at, length, operands);
      multiply_chunk<kIsQ4>(one, operands, k, length, at);
      at += kIsQ4 ? kHeaderBytes + t.group / 2 * kColumns : length / 2 * kRowBytes;
    }
  }
}

// One row has two chains of sums per quad, or additions would wait for each other.
template <int kRows>
[[gnu::noinline]] void dot_panel(const Tile& t, const uint8_t* at, int64_t row, float* dst) {
  constexpr int kChains = kRows == 1 ? 2 : 1;
  const auto* lhs = static_cast<const uint16_t*>(t.lhs) + row * t.k;
  float32x4_t acc[kRows][kQuads][kChains];
  for (auto& each : acc)
    for (auto& quad : each)
      for (auto& chain : quad) chain = vdupq_n_f32(0);
  for (const uint16_t* end = lhs + t.k; lhs < end; lhs += 8, at += 4 * kRowBytes) {
    bfloat16x8_t a[kRows];
    for (int r = 0; r < kRows; ++r) a[r] = load_bf16(lhs + r * t.k);
    for (int i = 0; i < 4; ++i) prefetch(at + i * kRowBytes);
    const auto add = [&](auto lane) {
      constexpr int kLane = decltype(lane)::value, kChain = kLane % kChains;
      for (int q = 0; q < kQuads; ++q) {
        const bfloat16x8_t w = vreinterpretq_bf16_s8(load_row(at + kLane * kRowBytes, q));
        for (int r = 0; r < kRows; ++r)
          acc[r][q][kChain] = vbfdotq_laneq_f32(acc[r][q][kChain], w, a[r], kLane);
      }
    };
    add(std::integral_constant<int, 0>());
    add(std::integral_constant<int, 1>());
    add(std::integral_constant<int, 2>());
    add(std::integral_constant<int, 3>());
  }
  for (int r = 0; r < kRows; ++r)
    for (int q = 0; q < kQuads; ++q) {
      float32x4_t sum = acc[r][q][0];
      if constexpr (kChains == 2) sum = vaddq_f32(sum, acc[r][q][1]);
      vst1q_f32(dst + r * t.dst_stride + 4 * q, sum);
    }
}

void dot_tile(const Tile& t) {
  for_each_block<4>(t, [&](auto rows, const uint8_t* panel, int64_t row, float* dst) {
    dot_panel<decltype(rows)::value>(t, panel, row, dst);
  });
}

constexpr Kernel kKernels[] = {
    {"matmul_f32_bf16_qs4p16x4_128x16_neon_bf16", Op::q4_exact, Isa::neon_bf16, 1, 128, 4, LhsLayout::pairs,
     chunked_tile<true>},
    {"matmul_f32_bf16_bf16p16x2_128x16_neon_bf16", Op::bf16, Isa::neon_bf16, 5, 128, 4, LhsLayout::pairs,
     chunked_tile<false>},
    {"matmul_f32_bf16_bf16p16x2_4x16_neon_bf16", Op::bf16, Isa::neon_bf16, 1, 4, 16, LhsLayout::rows, dot_tile},
};

}  // namespace

const Level kNeonBf16 = {kKernels, int(std::size(kKernels)), {}};

}  // namespace axiond::linear
