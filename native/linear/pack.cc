#include "pack.h"

#include <algorithm>
#include <cstring>

namespace axiond::linear {
namespace {

void pack_q4_panel(const Rhs& rhs, int64_t n0, const uint8_t* q, const uint16_t* scales, const uint8_t* zero_points,
                   uint8_t* to) {
  const int64_t groups = rhs.k / rhs.group, columns = std::min<int64_t>(kColumns, rhs.n - n0);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t at = (n0 + c) * groups + g;
      std::memcpy(to + 2 * c, scales + at, 2);
      to[32 + c] = uint8_t(zero_points ? 8 - zero_points[at] : 0);
    }
    to += kHeaderBytes;
    for (int64_t k0 = g * rhs.group; k0 < (g + 1) * rhs.group; k0 += 32, to += 4 * kRowBytes)
      for (int64_t c = 0; c < columns; ++c) {
        const uint8_t* from = q + (n0 + c) * rhs.k + k0;
        for (int i = 0; i < 16; ++i)
          to[i / 4 * kRowBytes + c * 4 + i % 4] = uint8_t((from[i] ^ 8) | (from[i + 16] ^ 8) << 4);
      }
  }
}

}  // namespace

void pack_q4(const Rhs& rhs, const uint8_t* q, const uint16_t* scales, const uint8_t* zero_points, uint8_t* to) {
  std::memset(to, 0, size_t(rhs.panels() * rhs.panel_bytes()));
#pragma omp parallel for
  for (int64_t p = 0; p < rhs.panels(); ++p)
    pack_q4_panel(rhs, p * kColumns, q, scales, zero_points, to + p * rhs.panel_bytes());
}

void pack_q8(const Rhs& rhs, const int8_t* q, const float* scales, uint8_t* to) {
  std::memset(to, 0, size_t(rhs.panels() * rhs.panel_bytes()));
#pragma omp parallel for
  for (int64_t n = 0; n < rhs.n; ++n) {
    uint8_t* panel = to + n / kColumns * rhs.panel_bytes();
    const int64_t c = n % kColumns;
    std::memcpy(panel + 4 * c, scales + n, 4);
    for (int64_t k = 0; k < rhs.k; k += 4)
      std::memcpy(panel + kHeaderBytes + k / 4 * kRowBytes + 4 * c, q + n * rhs.k + k, 4);
  }
}

void pack_bf16(const Rhs& rhs, const uint16_t* weight, uint8_t* to) {
  std::memset(to, 0, size_t(rhs.panels() * rhs.panel_bytes()));
#pragma omp parallel for
  for (int64_t n = 0; n < rhs.n; ++n) {
    uint8_t* panel = to + n / kColumns * rhs.panel_bytes();
    for (int64_t k = 0; k < rhs.k; k += 2)
      std::memcpy(panel + k / 2 * kRowBytes + n % kColumns * 4, weight + n * rhs.k + k, 4);
  }
}

}  // namespace axiond::linear
