// q8 for AVX2, without VNNI: bytes are widened to 16 bits, and VPMADDWD adds products of two.
#if !defined(__AVX2__) || !defined(__FMA__)
#error "needs -mavx2 -mfma"
#endif
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "linear.h"

namespace axiond::linear {
namespace {

constexpr int kQuads = 4;  // of 4 columns in a panel
constexpr int kTileRows = 2;

__m256i load8(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
__m256i widen(const void* from) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(from))); }

// dst += the products of a group, for R rows and a panel.
template <int R>
[[gnu::always_inline]] inline void multiply_group(const int8_t* lhs, int64_t k, const float* scale, int64_t groups,
                                                  const uint8_t* weights, int group, float* dst, int64_t dst_stride) {
  alignas(32) int16_t wide[R][kMaxGroup];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < group; i += 16) _mm256_store_si256(reinterpret_cast<__m256i*>(wide[r] + i), widen(lhs + r * k + i));
  __m256i acc[R][kQuads];
  for (auto& row : acc)
    for (__m256i& sums : row) sums = _mm256_setzero_si256();
  for (int i = 0; i < group; i += 4, weights += kRowBytes) {
    __m256i right[kQuads];
    for (int q = 0; q < kQuads; ++q) right[q] = widen(weights + 16 * q);
    for (int r = 0; r < R; ++r) {
      int64_t four;
      std::memcpy(&four, wide[r] + i, 8);
      const __m256i left = _mm256_set1_epi64x(four);
      for (int q = 0; q < kQuads; ++q) acc[r][q] = _mm256_add_epi32(acc[r][q], _mm256_madd_epi16(left, right[q]));
    }
  }
  for (int r = 0; r < R; ++r)
    for (int half = 0; half < 2; ++half) {
      // Each column has two sums beside each other; HADD adds them, within 128 bits.
      const __m256i added = _mm256_hadd_epi32(acc[r][2 * half], acc[r][2 * half + 1]);
      const __m256 sums = _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(added, 0xd8));
      float* to = dst + r * dst_stride + 8 * half;
      _mm256_storeu_ps(to, _mm256_fmadd_ps(sums, _mm256_set1_ps(scale[r * groups]), _mm256_loadu_ps(to)));
    }
}

template <int R>
void multiply_rows(const Tile& t, int64_t row, const uint8_t* panel, float* dst) {
  const int64_t groups = t.k / t.group;
  for (int r = 0; r < R; ++r) std::fill_n(dst + r * t.dst_stride, kColumns, 0.0f);
  for (int64_t g = 0; g < groups; ++g)
    multiply_group<R>(static_cast<const int8_t*>(t.lhs) + row * t.k + g * t.group, t.k, t.lhs_scale + row * groups + g, groups,
                      panel + kHeaderBytes + g * t.group / 4 * kRowBytes, t.group, dst, t.dst_stride);
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < kColumns; c += 8) {
      float* to = dst + r * t.dst_stride + c;
      _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_loadu_ps(to), _mm256_loadu_ps(reinterpret_cast<const float*>(panel) + c)));
    }
}

void q8_tile(const Tile& t) {
  for (int64_t p = 0; p < t.panels; ++p) {
    const uint8_t* panel = t.rhs + p * t.panel_bytes;
    float* dst = t.dst + p * kColumns;
    int64_t row = 0;
    for (; row + kTileRows <= t.rows; row += kTileRows) multiply_rows<kTileRows>(t, row, panel, dst + row * t.dst_stride);
    if (row < t.rows) multiply_rows<1>(t, row, panel, dst + row * t.dst_stride);
  }
}

float amax_of(const float* x, int group) {
  __m256i largest = _mm256_setzero_si256();  // as integers the bits of a NaN are above those of every number
  for (int i = 0; i < group; i += 8)
    largest = _mm256_max_epu32(largest, _mm256_and_si256(load8(x + i), _mm256_set1_epi32(0x7fffffff)));
  uint32_t lanes[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), largest);
  uint32_t most = 0;
  for (const uint32_t lane : lanes) most = lane > most ? lane : most;
  return float_of(most);
}

__m256i rounded(const float* x, __m256 inverse) {
  const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x), inverse);
  const __m256 is_number = _mm256_cmp_ps(scaled, scaled, _CMP_ORD_Q);
  return _mm256_and_si256(_mm256_cvtps_epi32(scaled), _mm256_castps_si256(is_number));
}

void quantize(const void* x, Dtype type, int64_t k, int group, int8_t* q, int64_t chunk_stride, float* scale, int32_t* sum) {
  if (type != Dtype::f32) return kPortable.helpers.quantize(x, type, k, group, q, chunk_stride, scale, sum);
  const float* from = static_cast<const float*>(x);
  for (int64_t g = 0; g < k / group; ++g) {
    const float amax = amax_of(from, group);
    const bool is_tiny = amax < kTiny;
    const __m256 inverse = _mm256_set1_ps(is_tiny ? 0.0f : 127.0f / amax);
    __m256i total = _mm256_setzero_si256();
    for (int i = 0; i < group; i += 16, from += 16, q += 2 * chunk_stride) {
      const __m256i low = rounded(from, inverse), high = rounded(from + 8, inverse);
      total = _mm256_add_epi32(total, _mm256_add_epi32(low, high));
      const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
      const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(q), bytes);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(q + chunk_stride), _mm_unpackhi_epi64(bytes, bytes));
    }
    int32_t lanes[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), total);
    scale[g] = is_tiny ? 0.0f : amax / 127.0f;
    sum[g] = lanes[0] + lanes[1] + lanes[2] + lanes[3] + lanes[4] + lanes[5] + lanes[6] + lanes[7];
  }
}

void finish(const float* f, const void* bias, void* dst, Dtype type, int64_t n) {
  if (type != Dtype::f32) return kPortable.helpers.finish(f, bias, dst, type, n);
  float* to = static_cast<float*>(dst);
  for (int64_t i = 0; i < n; ++i) to[i] = bias ? f[i] + static_cast<const float*>(bias)[i] : f[i];
}

void split(const void* x, Dtype type, int64_t k, uint16_t* high, uint16_t* low, int64_t chunk_stride) {
  kPortable.helpers.split(x, type, k, high, low, chunk_stride);
}

constexpr Kernel kKernels[] = {
    {"matmul_f32_qs8_qs8p16x4_2x16_avx2", Op::q8, Isa::avx2, 1, 32, 4, LhsLayout::rows, q8_tile},
};

}  // namespace

const Level kAvx2 = {kKernels, int(std::size(kKernels)), {Isa::avx2, quantize, finish, split}};

}  // namespace axiond::linear
