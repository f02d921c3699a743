// q4 and q8 for AVX-512 VNNI: int8 activations, unsigned weights as VPDPBUSD wants them.
//
// A tile is up to 8 rows by 2 panels. Weights are unpacked between the multiplications, into registers: the shifts and
// masks fill issue slots that VPDPBUSD leaves idle, so unpacking into a buffer first was never faster, for any m.
#if !defined(__AVX512VNNI__)
#error "needs -mavx512vnni"
#endif

#include "avx512.h"

namespace axiond::linear {
namespace {

constexpr int kTileRows = 8, kTilePanels = 2;

// acc += weights (unsigned) * lhs (signed), four products a lane. Not the intrinsic: GCC 12 loses track of accumulators
// over its change of vector type, and spills them (the same loop ran at 0.4 of the speed).
AXIOND_INLINE inline void multiply_add(__m512i& acc, __m512i weights, __m512i lhs) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(weights), "v"(lhs));
}

struct Q4 {
  static constexpr int kPanelHeader = 0, kGroupHeader = kHeaderBytes, kBlockBytes = 4 * kRowBytes;

  // The i-th quad to read: the low and the high half of a row follow each other.
  static constexpr int quad(int i) { return i / 2 + i % 2 * 4; }

  // q: 0 to 15.
  static AXIOND_INLINE __m512i weights(const uint8_t* block, int quad) {
    __m512i row = _mm512_load_si512(block + quad % 4 * kRowBytes);
    if (quad >= 4) row = _mm512_srli_epi16(row, 4);
    constexpr int kAndThenXor = 0x6a;
    return _mm512_ternarylogic_epi32(row, _mm512_set1_epi8(0x0f), _mm512_set1_epi8(8), kAndThenXor);
  }

  // What each unit of the sum of activations adds: (8 - zero point) - 8, the latter because q is unsigned.
  static AXIOND_INLINE __m512i shift(const uint8_t* header) {
    return _mm512_sub_epi32(_mm512_cvtepi8_epi32(load_shifts(header)), _mm512_set1_epi32(8));
  }

  static AXIOND_INLINE __m512 scale(const uint8_t* header, Dtype type, __m512 lhs_scale) {
    return _mm512_mul_ps(load_scales(header, type), lhs_scale);
  }
};

struct Q8 {
  static constexpr int kPanelHeader = kHeaderBytes, kGroupHeader = 0, kBlockBytes = 8 * kRowBytes;

  static constexpr int quad(int i) { return i; }

  // q + 128.
  static AXIOND_INLINE __m512i weights(const uint8_t* block, int quad) {
    return _mm512_xor_si512(_mm512_load_si512(block + quad * kRowBytes), _mm512_set1_epi8(-128));
  }

  static AXIOND_INLINE __m512i shift(const uint8_t*) { return _mm512_set1_epi32(-128); }

  static AXIOND_INLINE __m512 scale(const uint8_t*, Dtype, __m512 lhs_scale) { return lhs_scale; }
};

// dst = fma(products of one group, scales, dst) for R rows and P panels; `at` is where the panels' group begins.
template <class W, int R, int P>
AXIOND_INLINE inline void multiply_group(const Tile& t, int64_t row, int64_t g, const uint8_t* const* at,
                                         int64_t ahead) {
  constexpr int kChains = std::max(1, std::min(4, 16 / (R * P)));  // VPDPBUSD takes 4 cycles, and 2 start in each
  const int64_t groups = t.k / t.group, k = t.k;
  const float* lhs_scale = t.lhs_scale + row * groups + g;
  const int32_t* lhs_sum = t.lhs_sum + row * groups + g;
  __m512i acc[R][P][kChains];
  __m512i shift[P];
  each<P>(AXIOND_EACH(p) { shift[p] = W::shift(at[p]); });
  each<R>(AXIOND_EACH(r) {
    each<P>(AXIOND_EACH(p) {
      acc[r][p][0] = _mm512_mullo_epi32(shift[p], _mm512_set1_epi32(lhs_sum[r * groups]));
      each<kChains - 1>(AXIOND_EACH(c) { acc[r][p][c + 1] = _mm512_setzero_si512(); });
    });
  });
  const uint8_t* block[P];
  each<P>(AXIOND_EACH(p) { block[p] = at[p] + W::kGroupHeader; });
  const int8_t* lhs = static_cast<const int8_t*>(t.lhs) + row * k + g * t.group;
  for (int left = t.group; left > 0; left -= kBlockK, lhs += kBlockK) {
    each<W::kBlockBytes / kRowBytes>(AXIOND_EACH(i) {
      each<P>(AXIOND_EACH(p) { _mm_prefetch(block[p] + i * kRowBytes + ahead, _MM_HINT_T0); });
    });
    each<8>(AXIOND_EACH(i) {
      constexpr int kQuad = W::quad(i);
      __m512i weights[P];
      each<P>(AXIOND_EACH(p) { weights[p] = W::weights(block[p], kQuad); });
      each<R>(AXIOND_EACH(r) {
        const __m512i x = broadcast4(lhs + r * k + 4 * kQuad);
        each<P>(AXIOND_EACH(p) { multiply_add(acc[r][p][i % kChains], weights[p], x); });
      });
    });
    each<P>(AXIOND_EACH(p) { block[p] += W::kBlockBytes; });
  }
  each<R>(AXIOND_EACH(r) {
    const __m512 s = _mm512_set1_ps(lhs_scale[r * groups]);
    each<P>(AXIOND_EACH(p) {
      each<kChains - 1>(AXIOND_EACH(c) { acc[r][p][0] = _mm512_add_epi32(acc[r][p][0], acc[r][p][c + 1]); });
      float* dst = t.dst + (row + r) * t.dst_stride + p * kColumns;
      const __m512 f = g == 0 ? _mm512_setzero_ps() : _mm512_load_ps(dst);
      const __m512 product = _mm512_cvtepi32_ps(acc[r][p][0]);
      _mm512_store_ps(dst, _mm512_fmadd_ps(product, W::scale(at[p], t.scale_type, s), f));
    });
  });
}

template <class W, int P>
void multiply_panels(const Tile& t) {
  const int64_t groups = t.k / t.group, group_bytes = W::kGroupHeader + t.group / kBlockK * W::kBlockBytes;
  const Ahead ahead(group_bytes, groups, (P - 1) * t.panel_bytes);
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* at[P];
    each<P>(AXIOND_EACH(p) { at[p] = t.rhs + p * t.panel_bytes + W::kPanelHeader + g * group_bytes; });
    for (int64_t row = 0, count; row < t.rows; row += count) {
      count = even_share(t.rows - row, kTileRows);
      const int64_t prefetch = row == 0 ? ahead.from(g) : 0;
      switch (count) {
        case 1: multiply_group<W, 1, P>(t, row, g, at, prefetch); break;
        case 2: multiply_group<W, 2, P>(t, row, g, at, prefetch); break;
        case 3: multiply_group<W, 3, P>(t, row, g, at, prefetch); break;
        case 4: multiply_group<W, 4, P>(t, row, g, at, prefetch); break;
        case 5: multiply_group<W, 5, P>(t, row, g, at, prefetch); break;
        case 6: multiply_group<W, 6, P>(t, row, g, at, prefetch); break;
        case 7: multiply_group<W, 7, P>(t, row, g, at, prefetch); break;
        default: multiply_group<W, 8, P>(t, row, g, at, prefetch);
      }
    }
  }
}

Tile part(const Tile& t, int64_t panel) {
  Tile rest = t;
  rest.rhs += panel * t.panel_bytes;
  rest.dst += panel * kColumns;
  return rest;
}

// One row reads one panel after the other: a single stream comes out of memory fastest.
template <class W>
void multiply_tile(const Tile& t) {
  int64_t panel = 0;
  if (t.rows > 1)
    for (; panel + kTilePanels <= t.panels; panel += kTilePanels) multiply_panels<W, kTilePanels>(part(t, panel));
  for (; panel < t.panels; ++panel) multiply_panels<W, 1>(part(t, panel));
}

void q8_tile(const Tile& t) {
  multiply_tile<Q8>(t);
  for (int64_t p = 0; p < t.panels; ++p) {
    const __m512 scale = _mm512_load_ps(t.rhs + p * t.panel_bytes);
    for (int64_t r = 0; r < t.rows; ++r) {
      float* dst = t.dst + r * t.dst_stride + p * kColumns;
      _mm512_store_ps(dst, _mm512_mul_ps(_mm512_load_ps(dst), scale));
    }
  }
}

// A few rows take many panels a call; many rows take few, so that the panels stay in the L2 cache for all of the rows.
constexpr Kernel kKernels[] = {
    {"matmul_f32_qs8_qs4p16x4_8x32_avx512vnni", Op::q4, Isa::avx512vnni, 5, 64, 8, LhsLayout::rows, multiply_tile<Q4>},
    {"matmul_f32_qs8_qs4p16x4_4x32_avx512vnni", Op::q4, Isa::avx512vnni, 1, 4, 32, LhsLayout::rows, multiply_tile<Q4>},
    {"matmul_f32_qs8_qs8p16x4_8x32_avx512vnni", Op::q8, Isa::avx512vnni, 5, 64, 8, LhsLayout::rows, q8_tile},
    {"matmul_f32_qs8_qs8p16x4_4x32_avx512vnni", Op::q8, Isa::avx512vnni, 1, 4, 32, LhsLayout::rows, q8_tile},
};

}  // namespace

Level avx512vnni_level() {
  return {kKernels, int(std::size(kKernels)), {Isa::avx512vnni, quantize_avx512, finish_avx512, split_avx512}};
}

}  // namespace axiond::linear
