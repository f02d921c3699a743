// Constants that the vectors of all instruction sets share with rows.h.
#pragma once

namespace axiond::small {
namespace {
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: added to a small number it leaves the nearest integer in the low bits
constexpr int kMagicBits = 0x4B400000;
}  // namespace
}  // namespace axiond::small
