// V of vector_math.h, in AVX2; of it, what the encoder needs.
#pragma once

#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "this file needs -mavx2 -mfma -mf16c"
#endif
#include <immintrin.h>

#include "../dtype.h"
#include "vector.h"

namespace axiond::small {
namespace {

struct V {
  __m256 h[2];

  static V all(float f) { return {{_mm256_set1_ps(f), _mm256_set1_ps(f)}}; }

  template <Dtype T>
  static V load(const void* p, int64_t i) {
    if constexpr (T == Dtype::f32) {
      const float* from = static_cast<const float*>(p) + i;
      return {{_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}};
    }
    static_assert(T != Dtype::bf16);
    const auto* from = reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(p) + i);
    return {{_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from + 1))}};
  }
  template <Dtype T>
  static void store(void* p, int64_t i, V x) {
    static_assert(T == Dtype::f32);
    float* to = static_cast<float*>(p) + i;
    _mm256_storeu_ps(to, x.h[0]);
    _mm256_storeu_ps(to + 8, x.h[1]);
  }
  template <Dtype T>
  static V load(const void* p, int64_t i, int count) {
    static_assert(T == Dtype::f32);
    const float* from = static_cast<const float*>(p) + i;
    return {{_mm256_maskload_ps(from, first(count)), _mm256_maskload_ps(from + 8, first(count - 8))}};
  }
  template <Dtype T>
  static void store(void* p, int64_t i, V x, int count) {
    static_assert(T == Dtype::f32);
    float* to = static_cast<float*>(p) + i;
    _mm256_maskstore_ps(to, first(count), x.h[0]);
    _mm256_maskstore_ps(to + 8, first(count - 8), x.h[1]);
  }
  static __m256i first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  template <class F>
  static V each(F f) {
    return {{f(0), f(1)}};
  }
  friend V operator+(V a, V b) {
    return each([&](int j) { return _mm256_add_ps(a.h[j], b.h[j]); });
  }
  friend V operator-(V a, V b) {
    return each([&](int j) { return _mm256_sub_ps(a.h[j], b.h[j]); });
  }
  friend V operator*(V a, V b) {
    return each([&](int j) { return _mm256_mul_ps(a.h[j], b.h[j]); });
  }
  friend V operator/(V a, V b) {
    return each([&](int j) { return _mm256_div_ps(a.h[j], b.h[j]); });
  }
  static V fma(V a, V b, V c) {
    return each([&](int j) { return _mm256_fmadd_ps(a.h[j], b.h[j], c.h[j]); });
  }
  // VMAXPS and VMINPS give the second operand if either is a NaN.
  static V at_least(V x, float low) {
    return each([&](int j) { return _mm256_max_ps(_mm256_set1_ps(low), x.h[j]); });
  }
  static V at_most(V x, float high) {
    return each([&](int j) { return _mm256_min_ps(_mm256_set1_ps(high), x.h[j]); });
  }
  static V nan_max(V a, V b) {
    return each([&](int j) {
      const __m256 is_nan = _mm256_cmp_ps(b.h[j], b.h[j], _CMP_UNORD_Q);
      return _mm256_blendv_ps(_mm256_max_ps(b.h[j], a.h[j]), b.h[j], is_nan);
    });
  }
  static V abs(V x) {
    return each([&](int j) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.h[j]); });
  }
  static V if_negative(V x, V a, V b) {
    return each([&](int j) {
      return _mm256_blendv_ps(b.h[j], a.h[j], _mm256_cmp_ps(x.h[j], _mm256_setzero_ps(), _CMP_LT_OQ));
    });
  }
  // In two factors, because 2^n alone may be out of range where the product is not.
  static V scale(V x, V t) {
    return each([&](int j) {
      const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(t.h[j]), _mm256_set1_epi32(kMagicBits));
      const __m256i half = _mm256_srai_epi32(n, 1);
      return _mm256_mul_ps(_mm256_mul_ps(x.h[j], power(half)), power(_mm256_sub_epi32(n, half)));
    });
  }
  static __m256 power(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  static void zip(V& a, V& b) {
    const V x = a, y = b;
    a = zipped(x.h[0], y.h[0]);
    b = zipped(x.h[1], y.h[1]);
  }
  static V zipped(__m256 x, __m256 y) {
    const __m256 low = _mm256_unpacklo_ps(x, y), high = _mm256_unpackhi_ps(x, y);
    return {{_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)}};
  }
  static float sum(V x) {
    const __m256 eight = _mm256_add_ps(x.h[0], x.h[1]);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float greatest(V x) {
    float lanes[16], most = -__builtin_inff();
    store<Dtype::f32>(lanes, 0, x);
    for (const float lane : lanes) most = lane > most || lane != lane ? lane : most;
    return most;
  }
};

}  // namespace
}  // namespace axiond::small
