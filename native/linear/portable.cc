// Plain C++ for every CPU: the meaning of the other kernels, and the last row of every table.
#include <algorithm>
#include <cmath>

#include "linear.h"

namespace axiond::linear {
namespace {

int8_t q4_at(const uint8_t* block, int column, int kk) {
  const uint8_t byte = block[kk % 16 / 4 * kRowBytes + column * 4 + kk % 4];
  const int nibble = kk < 16 ? byte & 15 : byte >> 4;
  return int8_t((nibble ^ 8) - 8);
}

void q4_tile(const Tile& t) {
  const int64_t groups = t.k / t.group;
  for (int64_t p = 0; p < t.panels; ++p)
    for (int64_t r = 0; r < t.rows; ++r) {
      float* dst = t.dst + r * t.dst_stride + p * kColumns;
      std::fill_n(dst, kColumns, 0.0f);
      const auto* lhs = static_cast<const int8_t*>(t.lhs) + r * t.k;
      const uint8_t* at = t.rhs + p * t.panel_bytes;
      for (int64_t g = 0; g < groups; ++g) {
        const auto* shift = reinterpret_cast<const int8_t*>(at + 32);
        const uint8_t* blocks = at + kHeaderBytes;
        const int32_t sum = t.lhs_sum[r * groups + g];
        for (int c = 0; c < kColumns; ++c) {
          int32_t acc = shift[c] * sum;
          for (int kk = 0; kk < t.group; ++kk)
            acc += q4_at(blocks + kk / 32 * 4 * kRowBytes, c, kk % 32) * lhs[g * t.group + kk];
          const float s = load(at, t.scale_type, c) * t.lhs_scale[r * groups + g];
          dst[c] = std::fma(float(acc), s, dst[c]);
        }
        at = blocks + t.group / 32 * 4 * kRowBytes;
      }
    }
}

void q8_tile(const Tile& t) {
  const int64_t groups = t.k / t.group;
  for (int64_t p = 0; p < t.panels; ++p)
    for (int64_t r = 0; r < t.rows; ++r) {
      const uint8_t* panel = t.rhs + p * t.panel_bytes;
      const auto* rhs = reinterpret_cast<const int8_t*>(panel + kHeaderBytes);
      const auto* lhs = static_cast<const int8_t*>(t.lhs) + r * t.k;
      for (int c = 0; c < kColumns; ++c) {
        float f = 0;
        for (int64_t g = 0; g < groups; ++g) {
          int32_t acc = 0;
          for (int64_t kk = g * t.group; kk < (g + 1) * t.group; ++kk)
            acc += rhs[kk / 4 * kRowBytes + c * 4 + kk % 4] * lhs[kk];
          f = std::fma(float(acc), t.lhs_scale[r * groups + g], f);
        }
        t.dst[r * t.dst_stride + p * kColumns + c] = f * load(panel, Dtype::f32, c);
      }
    }
}

void q4_exact_tile(const Tile& t) {
  const int64_t groups = t.k / t.group;
  for (int64_t p = 0; p < t.panels; ++p)
    for (int64_t r = 0; r < t.rows; ++r) {
      float* dst = t.dst + r * t.dst_stride + p * kColumns;
      std::fill_n(dst, kColumns, 0.0f);
      const auto* lhs = static_cast<const uint16_t*>(t.lhs) + r * t.k;
      const uint8_t* at = t.rhs + p * t.panel_bytes;
      for (int64_t g = 0; g < groups; ++g) {
        const auto* shift = reinterpret_cast<const int8_t*>(at + 32);
        const uint8_t* blocks = at + kHeaderBytes;
        for (int c = 0; c < kColumns; ++c) {
          float acc = 0;
          for (int kk = 0; kk < t.group; ++kk)
            acc += float(q4_at(blocks + kk / 32 * 4 * kRowBytes, c, kk % 32) + shift[c]) *
                   bf16_to_f32(lhs[g * t.group + kk]);
          dst[c] += acc * load(at, t.scale_type, c);
        }
        at = blocks + t.group / 32 * 4 * kRowBytes;
      }
    }
}

void bf16_tile(const Tile& t) {
  for (int64_t p = 0; p < t.panels; ++p)
    for (int64_t r = 0; r < t.rows; ++r) {
      const auto* rhs = reinterpret_cast<const uint16_t*>(t.rhs + p * t.panel_bytes);
      const auto* lhs = static_cast<const uint16_t*>(t.lhs) + r * t.k;
      float f[kColumns] = {};
      for (int64_t kk = 0; kk < t.k; ++kk)
        for (int c = 0; c < kColumns; ++c)
          f[c] += bf16_to_f32(rhs[kk / 2 * 32 + c * 2 + kk % 2]) * bf16_to_f32(lhs[kk]);
      std::copy_n(f, kColumns, t.dst + r * t.dst_stride + p * kColumns);
    }
}

void quantize(const void* x, Dtype type, int64_t k, int group, int8_t* q, int64_t chunk_stride, float* scale,
              int32_t* sum) {
  for (int64_t g = 0; g < k / group; ++g) {
    const int64_t first = g * group;
    uint32_t largest = 0;
    for (int i = 0; i < group; ++i) largest = std::max(largest, bits_of(load(x, type, first + i)) & 0x7fffffff);
    const float amax = float_of(largest);
    const bool is_tiny = amax < kTiny;
    const float inverse = is_tiny ? 0.0f : 127.0f / amax;
    int32_t total = 0;
    for (int i = 0; i < group; ++i) {
      const float rounded = std::nearbyint(load(x, type, first + i) * inverse);
      const int8_t value = rounded >= -127.0f && rounded <= 127.0f ? int8_t(rounded) : 0;
      q[(first + i) / 8 * chunk_stride + (first + i) % 8] = value;
      total += value;
    }
    scale[g] = is_tiny ? 0.0f : amax / 127.0f;
    sum[g] = total;
  }
}

void finish(const float* f, const void* bias, void* dst, Dtype type, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(dst, type, i, bias ? f[i] + load(bias, type, i) : f[i]);
}

void split(const void* x, Dtype type, int64_t k, uint16_t* high, uint16_t* low, int64_t chunk_stride) {
  for (int64_t i = 0; i < k; ++i) {
    const float value = load(x, type, i);
    const int64_t at = i / 4 * chunk_stride + i % 4;
    high[at] = f32_to_bf16(value);
    if (low) low[at] = f32_to_bf16(value - bf16_to_f32(high[at]));
  }
}

constexpr Kernel kKernels[] = {
    {"matmul_f32_qs8_qs4p16x4_1x16_portable", Op::q4, Isa::portable, 1, 16, 4, LhsLayout::rows, q4_tile},
    {"matmul_f32_qs8_qs8p16x4_1x16_portable", Op::q8, Isa::portable, 1, 16, 4, LhsLayout::rows, q8_tile},
    {"matmul_f32_bf16_qs4p16x4_1x16_portable", Op::q4_exact, Isa::portable, 1, 16, 4, LhsLayout::rows, q4_exact_tile},
    {"matmul_f32_bf16_bf16p16x2_1x16_portable", Op::bf16, Isa::portable, 1, 16, 4, LhsLayout::rows, bf16_tile},
};

}  // namespace

const Level kPortable = {kKernels, int(std::size(kKernels)), {Isa::portable, quantize, finish, split}};

}  // namespace axiond::linear
