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

  static AXIOND_INLINE __m512 scale(const uint8_t* header, Dtype type) { return load_scales(header, type); }
  static AXIOND_INLINE __m512 both_scales(__m512 rhs, __m512 lhs) { return _mm512_mul_ps(rhs, lhs); }
};

struct Q8 {
  static constexpr int kPanelHeader = kHeaderBytes, kGroupHeader = 0, kBlockBytes = 8 * kRowBytes;

  static constexpr int quad(int i) { return i; }

  // q + 128.
  static AXIOND_INLINE __m512i weights(const uint8_t* block, int quad) {
    return _mm512_xor_si512(_mm512_load_si512(block + quad * kRowBytes), _mm512_set1_epi8(-128));
  }

  static AXIOND_INLINE __m512i shift(const uint8_t*) { return _mm512_set1_epi32(-128); }

  static AXIOND_INLINE __m512 scale(const uint8_t*, Dtype) { return _mm512_setzero_ps(); }
  static AXIOND_INLINE __m512 both_scales(__m512, __m512 lhs) { return lhs; }  // q8_tile() applies the other
};

// One group of k of P panels that are read side by side.
template <class W, int P>
struct Group {
  const uint8_t* block[P];
  __m512i shift[P];
  __m512 scale[P];

  AXIOND_INLINE Group(const Tile& t, int64_t offset) {
    each<P>(AXIOND_EACH(p) {
      const uint8_t* header = t.rhs + p * t.panel_bytes + offset;
      block[p] = header + W::kGroupHeader;
      shift[p] = W::shift(header);
      scale[p] = W::scale(header, t.scale_type);
    });
  }
};

// What belongs to a row and a group of k, and how far it is to the next row's.
struct Rows {
  const int8_t* lhs;
  const float* scale;
  const int32_t* sum;
  float* dst;
  int64_t k, groups, dst_stride;

  AXIOND_INLINE void skip(int64_t rows) {
    lhs += rows * k;
    scale += rows * groups;
    sum += rows * groups;
    dst += rows * dst_stride;
  }
};

// dst = fma(products of the group, scales, dst) for R rows and P panels.
template <class W, int R, int P>
AXIOND_INLINE inline void multiply_group(const Rows& rows, const Group<W, P>& group, int count, int64_t ahead) {
  constexpr int kChains = std::max(1, std::min(4, 16 / (R * P)));  // VPDPBUSD takes 4 cycles, and 2 start in each
  __m512i acc[R][P][kChains];
  each<R>(AXIOND_EACH(r) {
    const __m512i sum = _mm512_set1_epi32(rows.sum[r * rows.groups]);
    each<P>(AXIOND_EACH(p) {
      acc[r][p][0] = _mm512_mullo_epi32(group.shift[p], sum);
      each<kChains - 1>(AXIOND_EACH(c) { acc[r][p][c + 1] = _mm512_setzero_si512(); });
    });
  });
  const uint8_t* block[P];
  each<P>(AXIOND_EACH(p) { block[p] = group.block[p]; });
  const int8_t* lhs = rows.lhs;
  for (; count > 0; count -= kBlockK, lhs += kBlockK) {
    each<8>(AXIOND_EACH(i) {
      constexpr int kQuad = W::quad(i);
      __m512i weights[P];
      each<P>(AXIOND_EACH(p) {
        if (kQuad * kRowBytes < W::kBlockBytes) _mm_prefetch(block[p] + kQuad * kRowBytes + ahead, _MM_HINT_T0);
        weights[p] = W::weights(block[p], kQuad);
      });
      each<R>(AXIOND_EACH(r) {
        const __m512i x = broadcast4(lhs + r * rows.k + 4 * kQuad);
        each<P>(AXIOND_EACH(p) { multiply_add(acc[r][p][i % kChains], weights[p], x); });
      });
    });
    each<P>(AXIOND_EACH(p) { block[p] += W::kBlockBytes; });
  }
  each<R>(AXIOND_EACH(r) {
    const __m512 lhs_scale = _mm512_set1_ps(rows.scale[r * rows.groups]);
    each<P>(AXIOND_EACH(p) {
      each<kChains - 1>(AXIOND_EACH(c) { acc[r][p][0] = _mm512_add_epi32(acc[r][p][0], acc[r][p][c + 1]); });
      float* dst = rows.dst + r * rows.dst_stride + p * kColumns;
      const __m512 product = _mm512_cvtepi32_ps(acc[r][p][0]);
      _mm512_store_ps(dst, _mm512_fmadd_ps(product, W::both_scales(group.scale[p], lhs_scale), _mm512_load_ps(dst)));
    });
  });
}

template <class W, int P>
void multiply_panels(const Tile& t) {
  const int64_t groups = t.k / t.group, group_bytes = W::kGroupHeader + t.group / kBlockK * W::kBlockBytes;
  const Ahead ahead(group_bytes, groups, (P - 1) * t.panel_bytes);
  for (int64_t row = 0; row < t.rows; ++row) std::fill_n(t.dst + row * t.dst_stride, P * kColumns, 0.0f);
  const RowTiles tiles(t.rows, kTileRows);
  for (int64_t g = 0; g < groups; ++g) {
    const Group<W, P> group(t, W::kPanelHeader + g * group_bytes);
    Rows rows{static_cast<const int8_t*>(t.lhs) + g * t.group, t.lhs_scale + g, t.lhs_sum + g, t.dst,
              t.k, groups, t.dst_stride};
    for (int64_t tile = 0; tile < tiles.count; rows.skip(tiles.rows_of(tile++))) {
      const int64_t prefetch = tile == 0 ? ahead.from(g) : 0;
      switch (tiles.rows_of(tile)) {
        case 1: multiply_group<W, 1, P>(rows, group, t.group, prefetch); break;
        case 2: multiply_group<W, 2, P>(rows, group, t.group, prefetch); break;
        case 3: multiply_group<W, 3, P>(rows, group, t.group, prefetch); break;
        case 4: multiply_group<W, 4, P>(rows, group, t.group, prefetch); break;
        case 5: multiply_group<W, 5, P>(rows, group, t.group, prefetch); break;
        case 6: multiply_group<W, 6, P>(rows, group, t.group, prefetch); break;
        case 7: multiply_group<W, 7, P>(rows, group, t.group, prefetch); break;
        default: multiply_group<W, 8, P>(rows, group, t.group, prefetch);
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
    {"matmul_f32_qs8_qs4p16x4_8x32_avx512vnni", Op::q4, Isa::avx512vnni, 5, 32, 8, LhsLayout::rows, multiply_tile<Q4>},
    {"matmul_f32_qs8_qs4p16x4_4x32_avx512vnni", Op::q4, Isa::avx512vnni, 1, 4, 32, LhsLayout::rows, multiply_tile<Q4>},
    {"matmul_f32_qs8_qs8p16x4_8x32_avx512vnni", Op::q8, Isa::avx512vnni, 5, 32, 8, LhsLayout::rows, q8_tile},
    {"matmul_f32_qs8_qs8p16x4_4x32_avx512vnni", Op::q8, Isa::avx512vnni, 1, 4, 32, LhsLayout::rows, q8_tile},
};

}  // namespace

Level avx512vnni_level() {
  return {kKernels, int(std::size(kKernels)), {Isa::avx512vnni, quantize_avx512, finish_avx512, split_avx512}};
}

}  // namespace axiond::linear
