// bf16 weights, and q4 weights with unrounded activations, for AVX-512 BF16.
#if !defined(__AVX512BF16__)
#error "needs -mavx512bf16"
#endif

#include "tile_avx512.h"

namespace axiond::linear {
namespace {

constexpr int kStep = 256;  // of bf16: two panels of it are 16 KiB

struct Bfloat16 {
  using Lhs = uint16_t;
  using Acc = __m512;
  static constexpr int kUnit = 2, kMaxChains = 8;

  static AXIOND_INLINE __m512 zero() { return _mm512_setzero_ps(); }
  static AXIOND_INLINE __m512 sum(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }

  // acc += weights * lhs, two products a lane. Not the intrinsic, as with VPDPBUSD.
  static AXIOND_INLINE void multiply_add(__m512& acc, __m512i weights, __m512i lhs) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(weights), "v"(lhs));
  }
};

struct Bf16 : Bfloat16 {
  static constexpr int kPanelHeader = 0, kStepHeader = 0, kBlockBytes = 16 * kRowBytes;
  static constexpr int kSums = 8, kOneStreamRows = 4, kAheadBytes = 8192;

  static constexpr int unit(int i) { return i; }
  static int64_t step(const Tile&) { return kStep; }

  template <int P>
  struct Step {
    const uint8_t* block[P];

    AXIOND_INLINE Step(const Tile& t, int64_t offset) {
      each<P>(AXIOND_EACH(p) { block[p] = t.rhs + p * t.panel_bytes + offset; });
    }
    AXIOND_INLINE __m512 start(int, const int32_t*) const { return zero(); }
    AXIOND_INLINE __m512i weights(const uint8_t* at, int, int unit) const {
      return _mm512_load_si512(at + unit * kRowBytes);
    }
    AXIOND_INLINE __m512 add(__m512 f, __m512 acc, int, const float*) const { return _mm512_add_ps(f, acc); }
  };
};

// The bfloat16 of 0 to 15 and of -16 to -1: of each number that five bits hold.
AXIOND_INLINE inline __m512i integers() {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i low = _mm512_castps_si512(_mm512_cvtepi32_ps(lane));
  const __m512i high = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_sub_epi32(lane, _mm512_set1_epi32(16))));
  const __m256i low16 = _mm512_cvtepi32_epi16(_mm512_srli_epi32(low, 16));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low16), _mm512_cvtepi32_epi16(_mm512_srli_epi32(high, 16)), 1);
}

// Weights become q - zero point, which bfloat16 holds exactly; the scale comes after the sum of a group.
struct Q4 : Bfloat16 {
  static constexpr int kPanelHeader = 0, kStepHeader = kHeaderBytes, kBlockBytes = 4 * kRowBytes;
  static constexpr int kSums = 16, kOneStreamRows = 3, kAheadBytes = 16384;

  // A row of 64 bytes holds pairs 2 j and 2 j + 1 in the low nibbles, 2 j + 8 and 2 j + 9 in the high ones.
  static constexpr int unit(int i) { return i / 4 * 2 + i % 4 / 2 * 8 + i % 2; }
  static int64_t step(const Tile& t) { return t.group; }

  template <int P>
  struct Step {
    const uint8_t* block[P];
    __m512 scale[P];
    __m512i shift[P];  // minus the zero point, in the four bytes of each column
    __m512i table = integers();

    AXIOND_INLINE Step(const Tile& t, int64_t offset) {
      each<P>(AXIOND_EACH(p) {
        const uint8_t* header = t.rhs + p * t.panel_bytes + offset;
        block[p] = header + kHeaderBytes;
        scale[p] = load_scales(header, t.scale_type);
        const __m512i eight_more = _mm512_cvtepu8_epi32(load_shifts(header));
        const __m512i four_times = _mm512_mullo_epi32(eight_more, _mm512_set1_epi32(0x01010101));
        shift[p] = _mm512_sub_epi8(four_times, _mm512_set1_epi8(8));
      });
    }
    AXIOND_INLINE __m512 start(int, const int32_t*) const { return zero(); }
    AXIOND_INLINE __m512i weights(const uint8_t* at, int p, int unit) const {
      const __m512i q = unpack_nibbles(at + unit % 8 / 2 * kRowBytes, unit >= 8);
      const __m128i even = _mm_set_epi8(13, 13, 12, 12, 9, 9, 8, 8, 5, 5, 4, 4, 1, 1, 0, 0);
      const __m128i odd = _mm_set_epi8(15, 15, 14, 14, 11, 11, 10, 10, 7, 7, 6, 6, 3, 3, 2, 2);
      const __m512i pair = _mm512_broadcast_i32x4(unit % 2 ? odd : even);
      return _mm512_permutexvar_epi16(_mm512_shuffle_epi8(_mm512_add_epi8(q, shift[p]), pair), table);
    }
    AXIOND_INLINE __m512 add(__m512 f, __m512 acc, int p, const float*) const {
      return _mm512_fmadd_ps(acc, scale[p], f);
    }
  };
};

constexpr Kernel kKernels[] = {
    {"matmul_f32_bf16_qs4p16x4_8x32_avx512bf16", Op::q4_exact, Isa::avx512bf16, 5, 64, 4, LhsLayout::rows,
     multiply_tile<Q4>},
    {"matmul_f32_bf16_qs4p16x4_4x32_avx512bf16", Op::q4_exact, Isa::avx512bf16, 1, 4, 32, LhsLayout::rows,
     multiply_tile<Q4>},
    {"matmul_f32_bf16_bf16p16x2_8x32_avx512bf16", Op::bf16, Isa::avx512bf16, 5, 64, 4, LhsLayout::rows,
     multiply_tile<Bf16>},
    {"matmul_f32_bf16_bf16p16x2_4x32_avx512bf16", Op::bf16, Isa::avx512bf16, 1, 4, 32, LhsLayout::rows,
     multiply_tile<Bf16>},
};

}  // namespace

const Level kAvx512bf16 = {kKernels, int(std::size(kKernels)), {}};

}  // namespace axiond::linear
