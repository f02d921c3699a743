#include "pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace axiond::linear {
namespace {

// Call fill(panel, first column, columns) for each panel, on the thread that got its share: so its memory comes from that
// thread's NUMA node.
template <class Fill>
void each_panel(const Rhs& rhs, uint8_t* to, Fill fill) {
#pragma omp parallel for
  for (int64_t p = 0; p < rhs.panels(); ++p)
    fill(to + p * rhs.panel_bytes(), p * kColumns, int(std::min<int64_t>(kColumns, rhs.n - p * kColumns)));
}

// The numbers of 32 k, as they are packed: tile[k][column], each q - 8 as a signed 4-bit number.
using Tile4 = uint8_t[kBlockK][kColumns];

// Where in a word of AWQ's each of eight columns lies.
constexpr int kAwqShift[8] = {0, 16, 4, 20, 8, 24, 12, 28};

void read_tile(const Quarters& q, int64_t n0, int columns, int64_t k0, Tile4& tile) {
  if (columns < kColumns) std::memset(tile, 0, sizeof(Tile4));
  switch (q.kind) {
    case Nibbles::bytes:
    case Nibbles::signed_bytes: {
      const uint8_t flip = q.kind == Nibbles::bytes ? 8 : 0;
      for (int c = 0; c < columns; ++c) {
        const uint8_t* from = static_cast<const uint8_t*>(q.data) + (n0 + c) * q.stride_n + k0 * q.stride_k;
        for (int k = 0; k < kBlockK; ++k) tile[k][c] = uint8_t((from[k * q.stride_k] ^ flip) & 15);
      }
      return;
    }
    case Nibbles::words:
      for (int k = 0; k < kBlockK; k += 8) {
        const uint32_t* from = static_cast<const uint32_t*>(q.data) + n0 * q.stride_n + (k0 + k) / 8 * q.stride_k;
        uint32_t words[kColumns] = {};
        for (int c = 0; c < columns; ++c) words[c] = from[c * q.stride_n] ^ 0x88888888u;
        for (int i = 0; i < 8; ++i)
          for (int c = 0; c < kColumns; ++c) tile[k + i][c] = uint8_t(words[c] >> (4 * i) & 15);
        if (columns < kColumns)
          for (int i = 0; i < 8; ++i) std::memset(tile[k + i] + columns, 0, size_t(kColumns - columns));
      }
      return;
    case Nibbles::awq:
      for (int c8 = 0; c8 < columns; c8 += 8) {
        const uint32_t* from = static_cast<const uint32_t*>(q.data) + (n0 + c8) / 8 * q.stride_n + k0 * q.stride_k;
        for (int k = 0; k < kBlockK; ++k) {
          const uint32_t word = from[k * q.stride_k] ^ 0x88888888u;
          for (int c = 0; c < 8; ++c) tile[k][c8 + c] = uint8_t(word >> kAwqShift[c] & 15);
        }
      }
  }
}

void pack_q4_panel(const Rhs& rhs, int64_t n0, int columns, const Quarters& q, const uint16_t* scales,
                   const uint8_t* zero_points, uint8_t* to) {
  const int64_t groups = rhs.k / rhs.group;
  Tile4 tile;
  for (int64_t g = 0; g < groups; ++g) {
    std::memset(to, 0, kHeaderBytes);
    for (int c = 0; c < columns; ++c) {
      const int64_t at = (n0 + c) * groups + g;
      std::memcpy(to + 2 * c, scales + at, 2);
      to[32 + c] = uint8_t(zero_points ? 8 - zero_points[at] : 0);
    }
    to += kHeaderBytes;
    for (int64_t k0 = g * rhs.group; k0 < (g + 1) * rhs.group; k0 += kBlockK, to += 4 * kRowBytes) {
      read_tile(q, n0, columns, k0, tile);
      for (int row = 0; row < 4; ++row)
        for (int c = 0; c < kColumns; ++c)
          for (int b = 0; b < 4; ++b)
            to[row * kRowBytes + c * 4 + b] = uint8_t(tile[4 * row + b][c] | tile[16 + 4 * row + b][c] << 4);
    }
  }
}

// Round to nearest even, for numbers of less than 2^22: on every level the same, and without a call.
inline float rounded(float x) {
  constexpr float kShift = 0x1.8p23f;
  return (x + kShift) - kShift;
}

template <Dtype type>
void round_q8_panel(const Rhs& rhs, const uint8_t* weight, int columns, uint8_t* panel) {
  const int64_t row_bytes = rhs.k * size_of(type);
  float scale[kColumns];
  for (int c = 0; c < columns; ++c) {
    float amax = 0;
    for (int64_t k = 0; k < rhs.k; ++k) amax = std::max(amax, std::fabs(load(weight + c * row_bytes, type, k)));
    scale[c] = std::max(amax, std::numeric_limits<float>::min()) / 127;
  }
  std::memcpy(panel, scale, size_t(columns) * 4);
  for (int64_t k0 = 0; k0 < rhs.k; k0 += kBlockK)
    for (int c = 0; c < columns; ++c) {
      int8_t q[kBlockK];
      for (int k = 0; k < kBlockK; ++k)
        q[k] = int8_t(std::min(127.f, std::max(-127.f, rounded(load(weight + c * row_bytes, type, k0 + k) / scale[c]))));
      for (int k = 0; k < kBlockK; k += 4)
        std::memcpy(panel + kHeaderBytes + (k0 + k) / 4 * kRowBytes + 4 * c, q + k, 4);
    }
}

}  // namespace

void pack_q4(const Rhs& rhs, const Quarters& q, const uint16_t* scales, const uint8_t* zero_points, uint8_t* to) {
  each_panel(rhs, to, [&](uint8_t* panel, int64_t n0, int columns) {
    pack_q4_panel(rhs, n0, columns, q, scales, zero_points, panel);
  });
}

void pack_q8(const Rhs& rhs, const int8_t* q, const float* scales, uint8_t* to) {
  each_panel(rhs, to, [&](uint8_t* panel, int64_t n0, int columns) {
    if (columns < kColumns) std::memset(panel, 0, size_t(rhs.panel_bytes()));
    std::memcpy(panel, scales + n0, size_t(columns) * 4);
    for (int c = 0; c < columns; ++c)
      for (int64_t k = 0; k < rhs.k; k += 4)
        std::memcpy(panel + kHeaderBytes + k / 4 * kRowBytes + 4 * c, q + (n0 + c) * rhs.k + k, 4);
  });
}

void round_q8(const Rhs& rhs, const void* weight, Dtype type, uint8_t* to) {
  each_panel(rhs, to, [&](uint8_t* panel, int64_t n0, int columns) {
    if (columns < kColumns) std::memset(panel, 0, size_t(rhs.panel_bytes()));
    const uint8_t* from = static_cast<const uint8_t*>(weight) + n0 * rhs.k * size_of(type);
    (type == Dtype::bf16   ? round_q8_panel<Dtype::bf16>
     : type == Dtype::f16 ? round_q8_panel<Dtype::f16>
                          : round_q8_panel<Dtype::f32>)(rhs, from, columns, panel);
  });
}

void pack_bf16(const Rhs& rhs, const uint16_t* weight, uint8_t* to) {
  each_panel(rhs, to, [&](uint8_t* panel, int64_t n0, int columns) {
    if (columns < kColumns) std::memset(panel, 0, size_t(rhs.panel_bytes()));
    // As many k as a cache line of each column holds: the rows of the panel that they go to stay in the first cache.
    for (int64_t k0 = 0; k0 < rhs.k; k0 += kBlockK)
      for (int c = 0; c < columns; ++c)
        for (int k = 0; k < kBlockK; k += 2)
          std::memcpy(panel + (k0 + k) / 2 * kRowBytes + 4 * c, weight + (n0 + c) * rhs.k + k0 + k, 4);
  });
}

}  // namespace axiond::linear
