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

// Four rows of a panel from 32 k of its columns. Each word of `to` is one column of one row; a byte of it holds a number
// of k in its low half, and of k + 16 in its high one. Eight numbers are dealt with at a time.
using Rows4 = uint32_t (*)[kColumns];

constexpr uint32_t kLow = 0x0f0f0f0f, kFlip = 0x88888888;  // q xor 8 is q - 8 as a signed 4-bit number

// Every other number of two words, the one's below the other's: the even ones, and the odd ones.
inline uint32_t even(uint32_t low, uint32_t high) { return (low & kLow) | (high & kLow) << 4; }
inline uint32_t odd(uint32_t low, uint32_t high) { return (low >> 4 & kLow) | (high & ~kLow); }

void read_bytes(const Quarters& q, int64_t n0, int columns, int64_t k0, Rows4 to) {
  const uint32_t flip = q.kind == Nibbles::bytes ? kFlip & kLow : 0;
  for (int c = 0; c < columns; ++c) {
    uint32_t words[8];
    std::memcpy(words, static_cast<const uint8_t*>(q.data) + (n0 + c) * q.stride_n + k0, sizeof words);
    for (int row = 0; row < 4; ++row) to[row][c] = even(words[row] ^ flip, words[row + 4] ^ flip);
  }
}

void read_words(const Quarters& q, int64_t n0, int columns, int64_t k0, Rows4 to) {
  const uint32_t* from = static_cast<const uint32_t*>(q.data) + n0 * q.stride_n + k0 / 8 * q.stride_k;
  for (int half = 0; half < 2; ++half, from += q.stride_k)
    for (int c = 0; c < columns; ++c) {
      const uint32_t low = from[c * q.stride_n] ^ kFlip, high = from[c * q.stride_n + 2 * q.stride_k] ^ kFlip;
      const uint32_t e = even(low, high), o = odd(low, high);
      to[2 * half][c] = (e & 0xff) | (o & 0xff) << 8 | (e & 0xff00) << 8 | (o & 0xff00) << 16;
      to[2 * half + 1][c] = (e >> 16 & 0xff) | (o >> 8 & 0xff00) | (e >> 8 & 0xff0000) | (o & 0xff000000);
    }
}

// Byte i of each of four words, as one word, goes to to[column[i]].
inline void transpose(const uint32_t (&w)[4], uint32_t* to, const int (&column)[4]) {
  const uint32_t a = (w[0] & 0xff00ff) | (w[1] & 0xff00ff) << 8, b = (w[0] >> 8 & 0xff00ff) | (w[1] & 0xff00ff00);
  const uint32_t c = (w[2] & 0xff00ff) | (w[3] & 0xff00ff) << 8, d = (w[2] >> 8 & 0xff00ff) | (w[3] & 0xff00ff00);
  to[column[0]] = (a & 0xffff) | c << 16;
  to[column[1]] = (b & 0xffff) | d << 16;
  to[column[2]] = a >> 16 | (c & 0xffff0000);
  to[column[3]] = b >> 16 | (d & 0xffff0000);
}

void read_awq(const Quarters& q, int64_t n0, int columns, int64_t k0, Rows4 to) {
  constexpr int kEven[4] = {0, 4, 1, 5}, kOdd[4] = {2, 6, 3, 7};  // columns of a word's even numbers, and of its odd ones
  for (int c = 0; c < columns; c += 8) {
    const uint32_t* from = static_cast<const uint32_t*>(q.data) + (n0 + c) / 8 * q.stride_n + k0 * q.stride_k;
    for (int row = 0; row < 4; ++row, from += 4 * q.stride_k) {
      uint32_t e[4], o[4];
      for (int k = 0; k < 4; ++k) {
        const uint32_t low = from[k * q.stride_k] ^ kFlip, high = from[(k + 16) * q.stride_k] ^ kFlip;
        e[k] = even(low, high);
        o[k] = odd(low, high);
      }
      transpose(e, to[row] + c, kEven);
      transpose(o, to[row] + c, kOdd);
    }
  }
}

void pack_q4_panel(const Rhs& rhs, int64_t n0, int columns, const Quarters& q, const uint16_t* scales,
                   const uint8_t* zero_points, uint8_t* to) {
  const int64_t groups = rhs.k / rhs.group;
  const auto read = q.kind == Nibbles::awq ? read_awq : q.kind == Nibbles::words ? read_words : read_bytes;
  for (int64_t g = 0; g < groups; ++g) {
    std::memset(to, 0, kHeaderBytes);
    for (int c = 0; c < columns; ++c) {
      const int64_t at = (n0 + c) * groups + g;
      std::memcpy(to + 2 * c, scales + at, 2);
      to[32 + c] = uint8_t(zero_points ? 8 - zero_points[at] : 0);
    }
    to += kHeaderBytes;
    for (int64_t k0 = g * rhs.group; k0 < (g + 1) * rhs.group; k0 += kBlockK, to += 4 * kRowBytes) {
      if (columns < kColumns) std::memset(to, 0, 4 * kRowBytes);
      read(q, n0, columns, k0, reinterpret_cast<Rows4>(to));
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
