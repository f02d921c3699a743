// q4 and q8 for AVX-512 VNNI: int8 activations, and weights without sign, as VPDPBUSD wants them.
#if !defined(__AVX512VNNI__)
#error "needs -mavx512vnni"
#endif

#include "tile_avx512.h"

namespace axiond::linear {
namespace {

struct Int8 {
  using Lhs = int8_t;
  using Acc = __m512i;
  static constexpr int kUnit = 4, kSums = 16, kMaxChains = 4;

  static int64_t step(const Tile& t) { return t.group; }
  static AXIOND_INLINE __m512i zero() { return _mm512_setzero_si512(); }
  static AXIOND_INLINE __m512i sum(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }

  // acc += weights * lhs, four products a lane. Not the intrinsic: GCC 12 loses track of accumulators over its change
  // of vector type and spills them (the same loop ran at 0.4 of the speed).
  static AXIOND_INLINE void multiply_add(__m512i& acc, __m512i weights, __m512i lhs) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(weights), "v"(lhs));
  }
};

struct Q4 : Int8 {
  static constexpr int kPanelHeader = 0, kStepHeader = kHeaderBytes, kBlockBytes = 4 * kRowBytes;
  static constexpr int kOneStreamRows = 1, kAheadBytes = 16384;

  static constexpr int unit(int i) { return i / 2 + i % 2 * 4; }

  template <int P>
  struct Step {
    const uint8_t* block[P];
    __m512i shift[P];
    __m512 scale[P];

    AXIOND_INLINE Step(const Tile& t, int64_t offset) {
      each<P>(AXIOND_EACH(p) {
        const uint8_t* header = t.rhs + p * t.panel_bytes + offset;
        block[p] = header + kHeaderBytes;
        // (8 - zero point) - 8, the latter because nibbles are multiplied as q and not as q - 8.
        shift[p] = _mm512_sub_epi32(_mm512_cvtepi8_epi32(load_shifts(header)), _mm512_set1_epi32(8));
        scale[p] = load_scales(header, t.scale_type);
      });
    }
    AXIOND_INLINE __m512i start(int p, const int32_t* lhs_sum) const {
      return _mm512_mullo_epi32(shift[p], _mm512_set1_epi32(*lhs_sum));
    }
    AXIOND_INLINE __m512i weights(const uint8_t* at, int, int unit) const {
      return unpack_nibbles(at + unit % 4 * kRowBytes, unit >= 4);
    }
    AXIOND_INLINE __m512 add(__m512 f, __m512i acc, int p, const float* lhs_scale) const {
      return _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), _mm512_mul_ps(scale[p], _mm512_set1_ps(*lhs_scale)), f);
    }
  };
};

struct Q8 : Int8 {
  static constexpr int kPanelHeader = kHeaderBytes, kStepHeader = 0, kBlockBytes = 8 * kRowBytes;
  static constexpr int kOneStreamRows = 4, kAheadBytes = 8192;

  static constexpr int unit(int i) { return i; }

  template <int P>
  struct Step {
    const uint8_t* block[P];

    AXIOND_INLINE Step(const Tile& t, int64_t offset) {
      each<P>(AXIOND_EACH(p) { block[p] = t.rhs + p * t.panel_bytes + offset; });
    }
    AXIOND_INLINE __m512i start(int, const int32_t* lhs_sum) const { return _mm512_set1_epi32(-128 * *lhs_sum); }
    AXIOND_INLINE __m512i weights(const uint8_t* at, int, int unit) const {
      return _mm512_xor_si512(_mm512_load_si512(at + unit * kRowBytes), _mm512_set1_epi8(-128));  // q + 128
    }
    AXIOND_INLINE __m512 add(__m512 f, __m512i acc, int, const float* lhs_scale) const {
      return _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), _mm512_set1_ps(*lhs_scale), f);
    }
  };
};

void multiply_q8_tile(const Tile& t) {
  multiply_tile<Q8>(t);
  for (int64_t p = 0; p < t.panels; ++p) {
    const __m512 scale = _mm512_load_ps(t.rhs + p * t.panel_bytes);
    for (int64_t r = 0; r < t.rows; ++r) {
      float* dst = t.dst + r * t.dst_stride + p * kColumns;
      _mm512_store_ps(dst, _mm512_mul_ps(_mm512_load_ps(dst), scale));
    }
  }
}

// A few rows take many panels a call; many rows take so few that these stay in the L2 cache for all of the rows.
constexpr Kernel kKernels[] = {
    {"matmul_f32_qs8_qs4p16x4_8x32_avx512vnni", Op::q4, Isa::avx512vnni, 5, 32, 8, LhsLayout::rows, multiply_tile<Q4>},
    {"matmul_f32_qs8_qs4p16x4_4x32_avx512vnni", Op::q4, Isa::avx512vnni, 1, 4, 32, LhsLayout::rows, multiply_tile<Q4>},
    {"matmul_f32_qs8_qs8p16x4_8x32_avx512vnni", Op::q8, Isa::avx512vnni, 5, 32, 8, LhsLayout::rows, multiply_q8_tile},
    {"matmul_f32_qs8_qs8p16x4_4x32_avx512vnni", Op::q8, Isa::avx512vnni, 1, 4, 32, LhsLayout::rows, multiply_q8_tile},
};

}  // namespace

const Level kAvx512vnni = {
    kKernels, int(std::size(kKernels)), {Isa::avx512vnni, quantize_avx512, finish_avx512, split_avx512}};

}  // namespace axiond::linear
