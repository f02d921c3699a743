// Rounding of activations and of results, with AVX-512. Bit for bit as dtype.h and portable.cc do it.
#include "avx512.h"

namespace axiond::linear {
namespace {

constexpr int kLanes = 16;

AXIOND_INLINE inline __mmask16 first(int64_t n) { return n >= kLanes ? 0xffff : __mmask16((1u << n) - 1); }

template <Dtype type>
AXIOND_INLINE inline __m512 load(const void* from, int64_t i, __mmask16 mask = 0xffff) {
  if constexpr (type == Dtype::f32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(from) + i);
  const __m256i halves = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(from) + i);
  if constexpr (type == Dtype::f16) return _mm512_cvtph_ps(halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

AXIOND_INLINE inline __m512 bf16_to_f32(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

AXIOND_INLINE inline __m256i f32_to_bf16(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value), high = _mm512_srli_epi32(bits, 16);
  const __m512i half = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(high, _mm512_set1_epi32(1)));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, is_nan, high, _mm512_set1_epi32(0x40)));
}

// The instruction keeps a NaN's payload, where dtype.h has one NaN.
AXIOND_INLINE inline __m256i f32_to_f16(__m512 value) {
  const __m256i rounded = _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m256i sign = _mm256_and_si256(rounded, _mm256_set1_epi16(int16_t(0x8000)));
  return _mm256_mask_mov_epi16(rounded, is_nan, _mm256_or_si256(sign, _mm256_set1_epi16(0x7e00)));
}

template <Dtype type>
AXIOND_INLINE inline void store(void* to, int64_t i, __mmask16 mask, __m512 value) {
  if constexpr (type == Dtype::f32)
    _mm512_mask_storeu_ps(static_cast<float*>(to) + i, mask, value);
  else
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(to) + i, mask,
                             type == Dtype::bf16 ? f32_to_bf16(value) : f32_to_f16(value));
}

// The largest magnitude. As integers the bits of a NaN are above those of every number.
template <Dtype type>
AXIOND_INLINE inline float amax_of(const void* x, int64_t begin, int64_t end) {
  __m512i largest = _mm512_setzero_si512();
  for (int64_t i = begin; i < end; i += kLanes)
    largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(load<type>(x, i))));
  return _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(int(_mm512_reduce_max_epu32(largest)))));
}

template <Dtype type>
void quantize_as(const void* x, int64_t k, int group, int8_t* q, int64_t chunk_stride, float* scale, int32_t* sum) {
  for (int64_t begin = 0; begin < k; begin += group) {
    const float amax = amax_of<type>(x, begin, begin + group);
    const bool is_tiny = amax < kTiny;
    const __m512 inverse = _mm512_set1_ps(is_tiny ? 0.0f : 127.0f / amax);
    __m512i total = _mm512_setzero_si512();
    for (int64_t i = begin; i < begin + group; i += kLanes, q += 2 * chunk_stride) {
      const __m512 scaled = _mm512_mul_ps(load<type>(x, i), inverse);
      const __mmask16 is_number = _mm512_cmp_ps_mask(scaled, scaled, _CMP_ORD_Q);
      const __m512i rounded = _mm512_maskz_cvtps_epi32(is_number, scaled);  // at most 127: 127 / amax * amax
      total = _mm512_add_epi32(total, rounded);
      const __m128i bytes = _mm512_cvtepi32_epi8(rounded);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(q), bytes);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(q + chunk_stride), _mm_unpackhi_epi64(bytes, bytes));
    }
    *scale++ = is_tiny ? 0.0f : amax / 127.0f;
    *sum++ = _mm512_reduce_add_epi32(total);
  }
}

template <Dtype type>
void finish_as(const float* f, const void* bias, void* dst, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 mask = first(n - i);
    __m512 value = _mm512_maskz_loadu_ps(mask, f + i);
    if (bias) value = _mm512_add_ps(value, load<type>(bias, i, mask));
    store<type>(dst, i, mask, value);
  }
}

AXIOND_INLINE inline void store_runs(uint16_t* to, int64_t chunk_stride, __m256i halves) {
  const __m128i low = _mm256_castsi256_si128(halves), high = _mm256_extracti128_si256(halves, 1);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), low);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to + chunk_stride), _mm_unpackhi_epi64(low, low));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to + 2 * chunk_stride), high);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to + 3 * chunk_stride), _mm_unpackhi_epi64(high, high));
}

template <Dtype type>
void split_as(const void* x, int64_t k, uint16_t* high, uint16_t* low, int64_t chunk_stride) {
  for (int64_t i = 0; i < k; i += kLanes) {
    const __m512 value = load<type>(x, i);
    const __m256i rounded = f32_to_bf16(value);
    store_runs(high + i / 4 * chunk_stride, chunk_stride, rounded);
    if (low)
      store_runs(low + i / 4 * chunk_stride, chunk_stride, f32_to_bf16(_mm512_sub_ps(value, bf16_to_f32(rounded))));
  }
}

}  // namespace

void quantize_avx512(const void* x, Dtype type, int64_t k, int group, int8_t* q, int64_t chunk_stride, float* scale,
                     int32_t* sum) {
  switch (type) {
    case Dtype::f32: return quantize_as<Dtype::f32>(x, k, group, q, chunk_stride, scale, sum);
    case Dtype::f16: return quantize_as<Dtype::f16>(x, k, group, q, chunk_stride, scale, sum);
    case Dtype::bf16: return quantize_as<Dtype::bf16>(x, k, group, q, chunk_stride, scale, sum);
  }
}

void finish_avx512(const float* f, const void* bias, void* dst, Dtype type, int64_t n) {
  switch (type) {
    case Dtype::f32: return finish_as<Dtype::f32>(f, bias, dst, n);
    case Dtype::f16: return finish_as<Dtype::f16>(f, bias, dst, n);
    case Dtype::bf16: return finish_as<Dtype::bf16>(f, bias, dst, n);
  }
}

void split_avx512(const void* x, Dtype type, int64_t k, uint16_t* high, uint16_t* low, int64_t chunk_stride) {
  switch (type) {
    case Dtype::f32: return split_as<Dtype::f32>(x, k, high, low, chunk_stride);
    case Dtype::f16: return split_as<Dtype::f16>(x, k, high, low, chunk_stride);
    case Dtype::bf16: return split_as<Dtype::bf16>(x, k, high, low, chunk_stride);
  }
}

}  // namespace axiond::linear
