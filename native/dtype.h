// The three element types of activations, and their scalar conversions. Static, or the linker might give plain code the
// copy that was compiled for AVX-512.
#pragma once

#include <cstdint>
#include <cstring>

namespace axiond {

enum class Dtype : int { f32, f16, bf16 };

static inline int64_t size_of(Dtype type) { return type == Dtype::f32 ? 4 : 2; }

static inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

static inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

static inline float bf16_to_f32(uint16_t value) { return float_of(uint32_t(value) << 16); }

// Round to nearest even; a NaN stays a NaN.
static inline uint16_t f32_to_bf16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float f16_to_f32(uint16_t value) {
  const uint32_t sign = uint32_t(value & 0x8000) << 16, rest = value & 0x7fff;
  if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | ((rest & 0x3ff) << 13));
  // Shifted into place the number is 2^112 too small; the product is exact, for subnormals too.
  const float scaled = float_of(rest << 13) * float_of((127 + 112) << 23);
  return float_of(sign | bits_of(scaled));
}

// Round to nearest even; what is too large becomes infinite.
static inline uint16_t f32_to_f16(float value) {
  const uint32_t bits = bits_of(value), rest = bits & 0x7fffffff;
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  if (rest > 0x7f800000) return sign | 0x7e00;
  if (rest >= 0x47800000) return sign | 0x7c00;
  if (rest < 0x38800000) {  // subnormal: adding 0.5 lets the FPU round at the last half-precision place
    return sign | uint16_t(bits_of(float_of(rest) + 0.5f) - bits_of(0.5f));
  }
  return sign | uint16_t((rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13);
}

static inline float load(const void* from, Dtype type, int64_t i) {
  if (type == Dtype::f32) return static_cast<const float*>(from)[i];
  const uint16_t half = static_cast<const uint16_t*>(from)[i];
  return type == Dtype::bf16 ? bf16_to_f32(half) : f16_to_f32(half);
}

static inline void store(void* to, Dtype type, int64_t i, float value) {
  if (type == Dtype::f32)
    static_cast<float*>(to)[i] = value;
  else
    static_cast<uint16_t*>(to)[i] = type == Dtype::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
}

}  // namespace axiond
