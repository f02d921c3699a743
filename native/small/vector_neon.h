// V of vector_math.h, in NEON.
#pragma once

#if !defined(__aarch64__)
#error "this file is for aarch64"
#endif
#include <arm_neon.h>

#include "../dtype.h"
#include "vector.h"

namespace axiond::small {
namespace {

inline float32x4_t widen(uint16x4_t halves, Dtype type) {
  if (type == Dtype::f16) return vcvt_f32_f16(vreinterpret_f16_u16(halves));
  return vreinterpretq_f32_u32(vshll_n_u16(halves, 16));
}

inline uint16x4_t narrow(float32x4_t x, Dtype type) {
  if (type == Dtype::f16) return vreinterpret_u16_f16(vcvt_f16_f32(x));
  const uint32x4_t bits = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), 16);
}

struct V {
  float32x4_t q[4];

  template <class F>
  static V each(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  static V all(float f) {
    return each([=](int) { return vdupq_n_f32(f); });
  }

  template <Dtype T>
  static V load(const void* p, int64_t i) {
    if constexpr (T == Dtype::f32)
      return each([=](int j) { return vld1q_f32(static_cast<const float*>(p) + i + 4 * j); });
    else
      return each([=](int j) { return widen(vld1_u16(static_cast<const uint16_t*>(p) + i + 4 * j), T); });
  }
  template <Dtype T>
  static void store(void* p, int64_t i, V x) {
    for (int j = 0; j < 4; ++j)
      if constexpr (T == Dtype::f32)
        vst1q_f32(static_cast<float*>(p) + i + 4 * j, x.q[j]);
      else
        vst1_u16(static_cast<uint16_t*>(p) + i + 4 * j, narrow(x.q[j], T));
  }
  template <Dtype T>
  static V load(const void* p, int64_t i, int count) {
    constexpr int kSize = T == Dtype::f32 ? 4 : 2;
    char whole[16 * kSize] = {};
    __builtin_memcpy(whole, static_cast<const char*>(p) + i * kSize, size_t(count) * kSize);
    return load<T>(whole, 0);
  }
  template <Dtype T>
  static void store(void* p, int64_t i, V x, int count) {
    constexpr int kSize = T == Dtype::f32 ? 4 : 2;
    char whole[16 * kSize];
    store<T>(whole, 0, x);
    __builtin_memcpy(static_cast<char*>(p) + i * kSize, whole, size_t(count) * kSize);
  }
  template <Dtype T>
  static float one(const void* p, int64_t i) {
    if constexpr (T == Dtype::f32) return static_cast<const float*>(p)[i];
    return vgetq_lane_f32(widen(vdup_n_u16(static_cast<const uint16_t*>(p)[i]), T), 0);
  }

  friend V operator+(V a, V b) {
    return each([&](int j) { return vaddq_f32(a.q[j], b.q[j]); });
  }
  friend V operator-(V a, V b) {
    return each([&](int j) { return vsubq_f32(a.q[j], b.q[j]); });
  }
  friend V operator*(V a, V b) {
    return each([&](int j) { return vmulq_f32(a.q[j], b.q[j]); });
  }
  friend V operator/(V a, V b) {
    return each([&](int j) { return vdivq_f32(a.q[j], b.q[j]); });
  }
  static V fma(V a, V b, V c) {
    return each([&](int j) { return vfmaq_f32(c.q[j], a.q[j], b.q[j]); });
  }
  static V at_least(V x, float low) {
    return each([&](int j) { return vmaxq_f32(x.q[j], vdupq_n_f32(low)); });
  }
  static V at_most(V x, float high) {
    return each([&](int j) { return vminq_f32(x.q[j], vdupq_n_f32(high)); });
  }
  static V nan_max(V a, V b) {
    return each([&](int j) { return vmaxq_f32(a.q[j], b.q[j]); });
  }
  static V abs(V x) {
    return each([&](int j) { return vabsq_f32(x.q[j]); });
  }
  static V if_negative(V x, V a, V b) {
    return each([&](int j) { return vbslq_f32(vcltzq_f32(x.q[j]), a.q[j], b.q[j]); });
  }
  // In two factors, because 2^n alone may be out of range where the product is not.
  static V scale(V x, V t) {
    return each([&](int j) {
      const int32x4_t n = vsubq_s32(vreinterpretq_s32_f32(t.q[j]), vdupq_n_s32(kMagicBits)), half = vshrq_n_s32(n, 1);
      const float32x4_t scaled = vmulq_f32(x.q[j], power(half));
      return vmulq_f32(scaled, power(vsubq_s32(n, half)));
    });
  }
  static float32x4_t power(int32x4_t n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23)); }
  static void unzip(V& a, V& b) {
    const V x = a, y = b;
    a = {{vuzp1q_f32(x.q[0], x.q[1]), vuzp1q_f32(x.q[2], x.q[3]), vuzp1q_f32(y.q[0], y.q[1]), vuzp1q_f32(y.q[2], y.q[3])}};
    b = {{vuzp2q_f32(x.q[0], x.q[1]), vuzp2q_f32(x.q[2], x.q[3]), vuzp2q_f32(y.q[0], y.q[1]), vuzp2q_f32(y.q[2], y.q[3])}};
  }
  static void zip(V& a, V& b) {
    const V x = a, y = b;
    a = {{vzip1q_f32(x.q[0], y.q[0]), vzip2q_f32(x.q[0], y.q[0]), vzip1q_f32(x.q[1], y.q[1]), vzip2q_f32(x.q[1], y.q[1])}};
    b = {{vzip1q_f32(x.q[2], y.q[2]), vzip2q_f32(x.q[2], y.q[2]), vzip1q_f32(x.q[3], y.q[3]), vzip2q_f32(x.q[3], y.q[3])}};
  }
  static float sum(V x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.q[0], x.q[2]), vaddq_f32(x.q[1], x.q[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
  static float greatest(V x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.q[0], x.q[1]), vmaxq_f32(x.q[2], x.q[3]))); }
  static bool any_at_least(V x, float bound) {
    uint32x4_t any = vdupq_n_u32(0);
    for (int j = 0; j < 4; ++j) any = vorrq_u32(any, vcgeq_f32(x.q[j], vdupq_n_f32(bound)));
    return vmaxvq_u32(any) != 0;
  }
  static int32_t* indices_at_least(V x, float bound, int32_t first, int32_t* out) {
    float lanes[16];
    store<Dtype::f32>(lanes, 0, x);
    for (int j = 0; j < 16; ++j)
      if (lanes[j] >= bound) *out++ = first + j;
    return out;
  }
};

}  // namespace
}  // namespace axiond::small
