// V of vector_math.h, in plain C++.
#pragma once

#include "../dtype.h"
#include "vector.h"

namespace axiond::small {
namespace {

struct V {
  float v[16];

  static V all(float f) {
    V r;
    for (float& each : r.v) each = f;
    return r;
  }
  template <Dtype T>
  static float one(const void* p, int64_t i) {
    return axiond::load(p, T, i);
  }
  template <Dtype T>
  static V load(const void* p, int64_t i, int count = 16) {
    V r = all(0);
    for (int j = 0; j < count; ++j) r.v[j] = one<T>(p, i + j);
    return r;
  }
  template <Dtype T>
  static void store(void* p, int64_t i, V x, int count = 16) {
    for (int j = 0; j < count; ++j) axiond::store(p, T, i + j, x.v[j]);
  }
  template <class F>
  static V each(F f) {
    V r;
    for (int j = 0; j < 16; ++j) r.v[j] = f(j);
    return r;
  }

  friend V operator+(V a, V b) { return each([&](int j) { return a.v[j] + b.v[j]; }); }
  friend V operator-(V a, V b) { return each([&](int j) { return a.v[j] - b.v[j]; }); }
  friend V operator*(V a, V b) { return each([&](int j) { return a.v[j] * b.v[j]; }); }
  friend V operator/(V a, V b) { return each([&](int j) { return a.v[j] / b.v[j]; }); }
  static V fma(V a, V b, V c) {
    return each([&](int j) { return __builtin_fmaf(a.v[j], b.v[j], c.v[j]); });
  }
  static V at_least(V x, float low) {
    return each([&](int j) { return x.v[j] < low ? low : x.v[j]; });
  }
  static V at_most(V x, float high) {
    return each([&](int j) { return x.v[j] > high ? high : x.v[j]; });
  }
  static V nan_max(V a, V b) {
    return each([&](int j) { return a.v[j] > b.v[j] || a.v[j] != a.v[j] ? a.v[j] : b.v[j]; });
  }
  static V abs(V x) {
    return each([&](int j) { return __builtin_fabsf(x.v[j]); });
  }
  static V if_negative(V x, V a, V b) {
    return each([&](int j) { return x.v[j] < 0 ? a.v[j] : b.v[j]; });
  }
  // In two factors, because 2^n alone may be out of range where the product is not.
  static V scale(V x, V t) {
    return each([&](int j) {
      const int n = int(bits_of(t.v[j])) - kMagicBits, half = n >> 1;
      return x.v[j] * float_of(uint32_t(half + 127) << 23) * float_of(uint32_t(n - half + 127) << 23);
    });
  }
  static void unzip(V& a, V& b) {
    const V x = a, y = b;
    a = each([&](int j) { return j < 8 ? x.v[2 * j] : y.v[2 * j - 16]; });
    b = each([&](int j) { return j < 8 ? x.v[2 * j + 1] : y.v[2 * j - 15]; });
  }
  static void zip(V& a, V& b) {
    const V x = a, y = b;
    a = each([&](int j) { return j % 2 ? y.v[j / 2] : x.v[j / 2]; });
    b = each([&](int j) { return j % 2 ? y.v[8 + j / 2] : x.v[8 + j / 2]; });
  }
  static float sum(V x) {
    for (int step = 8; step; step /= 2)
      for (int j = 0; j < step; ++j) x.v[j] += x.v[j + step];
    return x.v[0];
  }
  static float greatest(V x) {
    V y = x;
    for (int step = 8; step; step /= 2)
      y = nan_max(y, each([&](int j) { return y.v[j ^ step]; }));
    return y.v[0];
  }
  static bool any_at_least(V x, float bound) {
    for (const float f : x.v)
      if (f >= bound) return true;
    return false;
  }
  static int32_t* indices_at_least(V x, float bound, int32_t first, int32_t* out) {
    for (int j = 0; j < 16; ++j)
      if (x.v[j] >= bound) *out++ = first + j;
    return out;
  }
};

}  // namespace
}  // namespace axiond::small
