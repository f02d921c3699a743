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

// Clear each panel and fill it, on the thread that got its share: so its memory comes from that thread's NUMA node.
template <class Fill>
void each_panel(const Rhs& rhs, uint8_t* to, Fill fill) {
#pragma omp parallel for
  for (int64_t p = 0; p < rhs.panels(); ++p) {
    uint8_t* panel = to + p * rhs.panel_bytes();
    std::memset(panel, 0, size_t(rhs.panel_bytes()));
    fill(panel, p * kColumns, std::min<int64_t>(kColumns, rhs.n - p * kColumns));
  }
}

}  // namespace

void pack_q4(const Rhs& rhs, const uint8_t* q, const uint16_t* scales, const uint8_t* zero_points, uint8_t* to) {
  each_panel(rhs, to, [&](uint8_t* panel, int64_t n0, int64_t) {
    pack_q4_panel(rhs, n0, q, scales, zero_points, panel);
  });
}

void pack_q8(const Rhs& rhs, const int8_t* q, const float* scales, uint8_t* to) {
  each_panel(rhs, to, [&](uint8_t* panel, int64_t n0, int64_t columns) {
    std::memcpy(panel, scales + n0, size_t(columns) * 4);
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t k = 0; k < rhs.k; k += 4)
        std::memcpy(panel + kHeaderBytes + k / 4 * kRowBytes + 4 * c, q + (n0 + c) * rhs.k + k, 4);
  });
}

void pack_bf16(const Rhs& rhs, const uint16_t* weight, uint8_t* to) {
  each_panel(rhs, to, [&](uint8_t* panel, int64_t n0, int64_t columns) {
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t k = 0; k < rhs.k; k += 2)
        std::memcpy(panel + k / 2 * kRowBytes + 4 * c, weight + (n0 + c) * rhs.k + k, 4);
  });
}

}  // namespace axiond::linear
