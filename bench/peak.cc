// What this CPU can do at most, for kernels.py: operations (a product and its sum are two) and bytes read a second.
#include "../native/linear/avx512.h"

using namespace axiond::linear;

namespace {

constexpr int kChains = 24;

template <class Vector, class Step>
void repeat(long loops, Vector start, Step step) {
  Vector acc[kChains];
  each<kChains>(AXIOND_EACH(i) { acc[i] = start; });
  while (loops-- > 0) each<kChains>(AXIOND_EACH(i) { step(acc[i]); });
  each<kChains>(AXIOND_EACH(i) { __asm__ volatile("" ::"v"(acc[i])); });
}

}  // namespace

// Each returns how many it did.
extern "C" double peak_vnni(long loops) {
  const __m512i one = _mm512_set1_epi8(1);
  const auto step = [&](__m512i& acc) AXIOND_INLINE { __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(acc) : "v"(one)); };
  repeat(loops, _mm512_setzero_si512(), step);
  return double(loops) * kChains * 128;
}

extern "C" double peak_bf16(long loops) {
  const __m512i one = _mm512_set1_epi16(0x3f80);
  const auto step = [&](__m512& acc) AXIOND_INLINE { __asm__ volatile("vdpbf16ps %1, %1, %0" : "+v"(acc) : "v"(one)); };
  repeat(loops, _mm512_setzero_ps(), step);
  return double(loops) * kChains * 64;
}

extern "C" double peak_read(const uint8_t* from, long bytes) {
  __m512i sum[4] = {};
  for (long i = 0; i < bytes; i += 256)
    each<4>(AXIOND_EACH(j) {
      _mm_prefetch(from + i + j * 64 + 8192, _MM_HINT_T0);
      sum[j] = _mm512_xor_si512(sum[j], _mm512_load_si512(from + i + j * 64));
    });
  each<4>(AXIOND_EACH(j) { __asm__ volatile("" ::"v"(sum[j])); });
  return double(bytes);
}
