// V of vector_math.h, in AVX-512.
#pragma once

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__)
#error "this file needs -mavx512f -mavx512bw -mavx512dq -mavx512vl"
#endif
// GCC 12's own _mm512_undefined_ps() is what it warns of here.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "../dtype.h"
#include "vector.h"

namespace axiond::small {
namespace {

struct V {
  __m512 v;

  static V all(float f) { return {_mm512_set1_ps(f)}; }

  static __m512 widen(__m256i halves, Dtype type) {
    if (type == Dtype::f16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static __m256i narrow(__m512 x, Dtype type) {
    if (type == Dtype::f16) return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(quiet, 16));
  }

  template <Dtype T>
  static V load(const void* p, int64_t i) {
    if constexpr (T == Dtype::f32) return {_mm512_loadu_ps(static_cast<const float*>(p) + i)};
    return {widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(p) + i)), T)};
  }
  template <Dtype T>
  static V load(const void* p, int64_t i, int count) {
    const __mmask16 lanes = __mmask16((1u << count) - 1);
    if constexpr (T == Dtype::f32) return {_mm512_maskz_loadu_ps(lanes, static_cast<const float*>(p) + i)};
    return {widen(_mm256_maskz_loadu_epi16(lanes, static_cast<const uint16_t*>(p) + i), T)};
  }
  template <Dtype T>
  static float one(const void* p, int64_t i) {
    return _mm512_cvtss_f32(load<T>(p, i, 1).v);
  }
  template <Dtype T>
  static void store(void* p, int64_t i, V x) {
    if constexpr (T == Dtype::f32)
      _mm512_storeu_ps(static_cast<float*>(p) + i, x.v);
    else
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(p) + i), narrow(x.v, T));
  }
  template <Dtype T>
  static void store(void* p, int64_t i, V x, int count) {
    const __mmask16 lanes = __mmask16((1u << count) - 1);
    if constexpr (T == Dtype::f32)
      _mm512_mask_storeu_ps(static_cast<float*>(p) + i, lanes, x.v);
    else
      _mm256_mask_storeu_epi16(static_cast<uint16_t*>(p) + i, lanes, narrow(x.v, T));
  }

  friend V operator+(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend V operator-(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend V operator*(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend V operator/(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
  static V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  // VMAXPS and VMINPS give the second operand if either is a NaN.
  static V at_least(V x, float low) { return {_mm512_max_ps(all(low).v, x.v)}; }
  static V at_most(V x, float high) { return {_mm512_min_ps(all(high).v, x.v)}; }
  static V nan_max(V a, V b) {
    return {_mm512_mask_mov_ps(_mm512_max_ps(b.v, a.v), _mm512_cmp_ps_mask(b.v, b.v, _CMP_UNORD_Q), b.v)};
  }
  static V abs(V x) { return {_mm512_abs_ps(x.v)}; }
  static V if_negative(V x, V a, V b) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_LT_OQ), b.v, a.v)};
  }
  static V scale(V x, V t) { return {_mm512_scalef_ps(x.v, (t - all(kMagic)).v)}; }
  static void unzip(V& a, V& b) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512 x = a.v;
    a.v = _mm512_permutex2var_ps(x, even, b.v);
    b.v = _mm512_permutex2var_ps(x, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b.v);
  }
  static void zip(V& a, V& b) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512 x = a.v;
    a.v = _mm512_permutex2var_ps(x, low, b.v);
    b.v = _mm512_permutex2var_ps(x, _mm512_add_epi32(low, _mm512_set1_epi32(8)), b.v);
  }
  static V turned8(V x) { return {_mm512_shuffle_f32x4(x.v, x.v, 0x4e)}; }
  static V turned4(V x) { return {_mm512_shuffle_f32x4(x.v, x.v, 0xb1)}; }
  static V turned2(V x) { return {_mm512_permute_ps(x.v, 0x4e)}; }
  static V turned1(V x) { return {_mm512_permute_ps(x.v, 0xb1)}; }
  static float sum(V x) {
    x = x + turned8(x);
    x = x + turned4(x);
    x = x + turned2(x);
    return _mm512_cvtss_f32((x + turned1(x)).v);
  }
  static float greatest(V x) {
    x = nan_max(x, turned8(x));
    x = nan_max(x, turned4(x));
    x = nan_max(x, turned2(x));
    return _mm512_cvtss_f32(nan_max(x, turned1(x)).v);
  }
  static __mmask16 lanes_at_least(V x, float bound) { return _mm512_cmp_ps_mask(x.v, all(bound).v, _CMP_GE_OQ); }
  static bool any_at_least(V x, float bound) { return lanes_at_least(x, bound) != 0; }
  static int32_t* indices_at_least(V x, float bound, int32_t first, int32_t* out) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __mmask16 lanes = lanes_at_least(x, bound);
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(lanes, _mm512_add_epi32(lane, _mm512_set1_epi32(first))));
    return out + __builtin_popcount(lanes);
  }
};

}  // namespace
}  // namespace axiond::small
