// What the AVX-512 kernels share. All of it is in an unnamed namespace, because the linker keeps one copy of a shared
// inline function, and that copy may hold instructions of whichever file it came from.
#pragma once

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__)
#error "needs -mavx512f -mavx512bw -mavx512dq -mavx512vl"
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of _mm512_undefined_ps() in its own header
#endif

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "linear.h"

#define AXIOND_INLINE __attribute__((always_inline))
#define AXIOND_EACH(i) [&](auto i) AXIOND_INLINE

namespace axiond::linear {

void quantize_avx512(const void* x, Dtype type, int64_t k, int group, int8_t* q, int64_t chunk_stride, float* scale,
                     int32_t* sum);
void finish_avx512(const float* f, const void* bias, void* dst, Dtype type, int64_t n);
void split_avx512(const void* x, Dtype type, int64_t k, uint16_t* high, uint16_t* low, int64_t chunk_stride);

namespace {

template <class F, int... I>
AXIOND_INLINE inline void each_of(std::integer_sequence<int, I...>, [[maybe_unused]] F f) {
  (f(std::integral_constant<int, I>{}), ...);
}

// f(0) to f(N - 1) with constant arguments: arrays of accumulators stay in registers only under constant indices.
template <int N, class F>
AXIOND_INLINE inline void each(F f) {
  each_of(std::make_integer_sequence<int, N>{}, f);
}

AXIOND_INLINE inline __m512i broadcast4(const void* from) {
  int32_t value;
  std::memcpy(&value, from, 4);
  return _mm512_set1_epi32(value);
}

AXIOND_INLINE inline __m512 load_scales(const uint8_t* header, Dtype type) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(header));
  if (type == Dtype::f16) return _mm512_cvtph_ps(halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// 8 minus the zero point, per column.
AXIOND_INLINE inline __m128i load_shifts(const uint8_t* header) {
  return _mm_load_si128(reinterpret_cast<const __m128i*>(header + 32));
}

// q, 0 to 15, of one half of a row of q4.
AXIOND_INLINE inline __m512i unpack_nibbles(const uint8_t* row, bool is_high) {
  __m512i nibbles = _mm512_load_si512(row);
  if (is_high) nibbles = _mm512_srli_epi16(nibbles, 4);
  constexpr int kAndThenXor = 0x6a;
  return _mm512_ternarylogic_epi32(nibbles, _mm512_set1_epi8(0x0f), _mm512_set1_epi8(8), kAndThenXor);
}

}  // namespace
}  // namespace axiond::linear
