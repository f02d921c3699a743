// Rounding of activations and of results. Bit for bit as dtype.h and portable.cc do it.
#include "neon.h"

namespace axiond::linear {
namespace {

template <Dtype type>
[[gnu::always_inline]] inline Eight load_eight(const void* from, int64_t i) {
  if constexpr (type == Dtype::f32) {
    const auto* f = static_cast<const float*>(from) + i;
    return {vld1q_f32(f), vld1q_f32(f + 4)};
  } else {
    const uint16x8_t halves = vld1q_u16(static_cast<const uint16_t*>(from) + i);
    return widen<type>(halves);
  }
}

// A NaN is larger than all numbers, as its bits are.
[[gnu::always_inline]] inline uint32x4_t magnitude(float32x4_t x) { return vreinterpretq_u32_f32(vabsq_f32(x)); }

template <Dtype type>
[[gnu::always_inline]] inline float amax_of(const void* x, int64_t begin, int64_t end) {
  uint32x4_t low = vdupq_n_u32(0), high = low;
  for (int64_t i = begin; i < end; i += 8) {
    const Eight e = load_eight<type>(x, i);
    low = vmaxq_u32(low, magnitude(e.low));
    high = vmaxq_u32(high, magnitude(e.high));
  }
  return float_of(vmaxvq_u32(vmaxq_u32(low, high)));
}

template <Dtype type>
void quantize_as(const void* x, int64_t k, int group, int8_t* q, int64_t chunk_stride, float* scale, int32_t* sum) {
  for (int64_t begin = 0; begin < k; begin += group) {
    const float amax = amax_of<type>(x, begin, begin + group);
    const bool is_tiny = amax < kTiny;
    const float inverse = is_tiny ? 0.0f : 127.0f / amax;
    int32x4_t total = vdupq_n_s32(0);
    for (int64_t i = begin; i < begin + group; i += 8, q += chunk_stride) {
      const Eight e = load_eight<type>(x, i);
      // A NaN becomes 0.
      const int16x4_t low = vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(e.low, inverse)));
      const int16x8_t all = vmovn_high_s32(low, vcvtnq_s32_f32(vmulq_n_f32(e.high, inverse)));
      total = vpadalq_s16(total, all);
      vst1_s8(q, vmovn_s16(all));
    }
    *scale++ = is_tiny ? 0.0f : amax / 127.0f;
    *sum++ = vaddvq_s32(total);
  }
}

[[gnu::always_inline]] inline uint16x4_t is_nan(float32x4_t x) { return vmovn_u32(vmvnq_u32(vceqq_f32(x, x))); }

[[gnu::always_inline]] inline uint16x4_t to_bf16(float32x4_t x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x);
  const uint32x4_t last = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint16x4_t rounded = vaddhn_u32(bits, vaddq_u32(last, vdupq_n_u32(0x7fff)));
  return vbsl_u16(is_nan(x), vorr_u16(vshrn_n_u32(bits, 16), vdup_n_u16(0x40)), rounded);
}

// The instruction keeps a NaN's payload, where dtype.h has one NaN.
[[gnu::always_inline]] inline uint16x4_t to_f16(float32x4_t x) {
  const uint16x4_t rounded = vreinterpret_u16_f16(vcvt_f16_f32(x));
  const uint16x4_t nan = vorr_u16(vand_u16(rounded, vdup_n_u16(0x8000)), vdup_n_u16(0x7e00));
  return vbsl_u16(is_nan(x), nan, rounded);
}

template <Dtype type>
[[gnu::always_inline]] inline void store_four(void* to, int64_t i, float32x4_t x) {
  if constexpr (type == Dtype::f32)
    vst1q_f32(static_cast<float*>(to) + i, x);
  else
    vst1_u16(static_cast<uint16_t*>(to) + i, type == Dtype::bf16 ? to_bf16(x) : to_f16(x));
}

template <Dtype type>
void finish_as(const float* f, const void* bias, void* dst, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    Eight e = load_eight<Dtype::f32>(f, i);
    if (bias) {
      const Eight b = load_eight<type>(bias, i);
      e = {vaddq_f32(e.low, b.low), vaddq_f32(e.high, b.high)};
    }
    store_four<type>(dst, i, e.low);
    store_four<type>(dst, i + 4, e.high);
  }
  for (; i < n; ++i) store(dst, type, i, bias ? f[i] + load(bias, type, i) : f[i]);
}

[[gnu::always_inline]] inline uint16x4_t split_four(float32x4_t x, float32x4_t& rest) {
  const uint16x4_t high = to_bf16(x);
  rest = vsubq_f32(x, vreinterpretq_f32_u32(vshll_n_u16(high, 16)));
  return high;
}

template <Dtype type>
void split_as(const void* x, int64_t k, uint16_t* high, uint16_t* low, int64_t chunk_stride) {
  for (int64_t i = 0; i < k; i += 8, high += 2 * chunk_stride) {
    const Eight e = load_eight<type>(x, i);
    Eight rest;
    vst1_u16(high, split_four(e.low, rest.low));
    vst1_u16(high + chunk_stride, split_four(e.high, rest.high));
    if (!low) continue;
    vst1_u16(low, to_bf16(rest.low));
    vst1_u16(low + chunk_stride, to_bf16(rest.high));
    low += 2 * chunk_stride;
  }
}

}  // namespace

void quantize_neon(const void* x, Dtype type, int64_t k, int group, int8_t* q, int64_t chunk_stride, float* scale,
                   int32_t* sum) {
  switch (type) {
    case Dtype::f32: return quantize_as<Dtype::f32>(x, k, group, q, chunk_stride, scale, sum);
    case Dtype::f16: return quantize_as<Dtype::f16>(x, k, group, q, chunk_stride, scale, sum);
    default: return quantize_as<Dtype::bf16>(x, k, group, q, chunk_stride, scale, sum);
  }
}

void finish_neon(const float* f, const void* bias, void* dst, Dtype type, int64_t n) {
  switch (type) {
    case Dtype::f32: return finish_as<Dtype::f32>(f, bias, dst, n);
    case Dtype::f16: return finish_as<Dtype::f16>(f, bias, dst, n);
    default: return finish_as<Dtype::bf16>(f, bias, dst, n);
  }
}

void split_neon(const void* x, Dtype type, int64_t k, uint16_t* high, uint16_t* low, int64_t chunk_stride) {
  switch (type) {
    case Dtype::f32: return split_as<Dtype::f32>(x, k, high, low, chunk_stride);
    case Dtype::f16: return split_as<Dtype::f16>(x, k, high, low, chunk_stride);
    default: return split_as<Dtype::bf16>(x, k, high, low, chunk_stride);
  }
}

}  // namespace axiond::linear
