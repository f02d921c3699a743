// The operations on rows of small.h, over a vector V of 16 floats that each <isa>.cc brings before including this.
#include "vector_math.h"
#include "small.h"

namespace axiond::small {
namespace {

template <Activation A>
inline V activation(V x) {
  if constexpr (A == Activation::silu) return x_times_sigmoid(x, x);
  if constexpr (A == Activation::gelu_tanh)  // (1 + tanh(u)) / 2 = sigmoid(2u)
    return x_times_sigmoid(x, x * V::fma(x * x, V::all(0.07135481627f), V::all(1.59576912161f)));
  return gelu(x);
}

template <Dtype T, Dtype W, bool kResidual>
void rms_norm_row(const RmsNorm& op, const void* x, const void* residual, void* sum, void* out) {
  const auto value = [=](auto part, int64_t i) {
    V v = part.template load<T>(x, i);
    if constexpr (kResidual) v = v + part.template load<T>(residual, i);
    return v;
  };
  Sums squares;
  by_vector(op.n, [&](int64_t i, auto part) {
    const V v = value(part, i);
    V& s = squares.s[i / kLanes % 4];
    s = V::fma(v, v, s);
  });
  const V factor = V::all(1.0f / __builtin_sqrtf(squares.total() / float(op.n) + op.epsilon));
  by_vector(op.n, [&](int64_t i, auto part) {
    const V v = value(part, i);  // again, because the stored sum is rounded
    if constexpr (kResidual) part.template store<T>(sum, i, v);
    V y = v * factor;
    if (op.weight) y = y * (part.template load<W>(op.weight, i) + V::all(op.weight_offset));
    part.template store<T>(out, i, y);
  });
}

template <Dtype T, Dtype W>
void rms_norm_rows(const RmsNorm& op, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; ++r) {
    const void* x = at(op.x, r / op.inner_rows * op.x_stride + r % op.inner_rows * op.x_inner_stride, T);
    void* out = at(op.out, r * op.out_stride, T);
    if (op.residual)
      rms_norm_row<T, W, true>(op, x, at(op.residual, r * op.residual_stride, T), at(op.sum, r * op.out_stride, T), out);
    else
      rms_norm_row<T, W, false>(op, x, nullptr, nullptr, out);
  }
}

void rms_norm(const RmsNorm& op, int64_t first, int64_t last) {
  by_type(op.type, [&](auto tag) {
    by_type(op.weight_type, [&](auto weight_tag) {
      rms_norm_rows<decltype(tag)::kType, decltype(weight_tag)::kType>(op, first, last);
    });
  });
}

template <Activation A, Dtype T>
void gate_rows(const Gate& op, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; ++r) {
    const void *gate = at(op.gate, r * op.stride, T), *up = at(op.up, r * op.stride, T);
    void* out = at(op.out, r * op.out_stride, T);
    by_vector(op.n, [=](int64_t i, auto part) {
      part.template store<T>(out, i, activation<A>(part.template load<T>(gate, i)) * part.template load<T>(up, i));
    });
  }
}

void gate(const Gate& op, int64_t first, int64_t last) {
  by_type(op.type, [&](auto tag) {
    constexpr Dtype T = decltype(tag)::kType;
    switch (op.activation) {
      case Activation::silu: return gate_rows<Activation::silu, T>(op, first, last);
      case Activation::gelu: return gate_rows<Activation::gelu, T>(op, first, last);
      case Activation::gelu_tanh: return gate_rows<Activation::gelu_tanh, T>(op, first, last);
    }
  });
}

inline void turn(V& x, V& y, V cos, V sin) {
  const V turned = V::fma(x, cos, V::all(0) - y * sin);
  y = V::fma(y, cos, x * sin);
  x = turned;
}

// The pairs [i, i + 16) of one head, or as many as `part` says.
template <Dtype T, class P>
void turn_halves(void* head, int64_t half, int64_t i, P part, V cos, V sin) {
  V x = part.template load<T>(head, i), y = part.template load<T>(head, half + i);
  turn(x, y, cos, sin);
  part.template store<T>(head, i, x);
  part.template store<T>(head, half + i, y);
}

template <Dtype T>
void turn_neighbours(void* head, int64_t i, Full, V cos, V sin) {
  V x = V::load<T>(head, 2 * i), y = V::load<T>(head, 2 * i + kLanes);
  V::unzip(x, y);
  turn(x, y, cos, sin);
  V::zip(x, y);
  V::store<T>(head, 2 * i, x);
  V::store<T>(head, 2 * i + kLanes, y);
}

template <Dtype T>
void turn_neighbours(void* head, int64_t i, Part part, V cos, V sin) {
  const int low = part.count < 8 ? 2 * part.count : int(kLanes), high = 2 * part.count - low;
  V x = V::load<T>(head, 2 * i, low), y = V::load<T>(head, 2 * i + kLanes, high);
  V::unzip(x, y);
  turn(x, y, cos, sin);
  V::zip(x, y);
  V::store<T>(head, 2 * i, x, low);
  V::store<T>(head, 2 * i + kLanes, y, high);
}

template <Dtype T>
void rotate_rows(const Rotary& op, int64_t first, int64_t last) {
  const int64_t half = op.rotary_dim / 2;
  for (int64_t r = first; r < last; ++r) {
    const void* angles = at(op.cos_sin, op.positions[r] * op.rotary_dim, T);
    by_vector(half, [&](int64_t i, auto part) {
      const V cos = part.template load<T>(angles, i), sin = part.template load<T>(angles, half + i);
      for (int64_t h = 0; h < op.query_heads + op.key_heads; ++h) {
        void* head = h < op.query_heads
                         ? at(op.query, r * op.query_stride + h * op.query_head_stride, T)
                         : at(op.key, r * op.key_stride + (h - op.query_heads) * op.key_head_stride, T);
        if (op.interleaved)
          turn_neighbours<T>(head, i, part, cos, sin);
        else
          turn_halves<T>(head, half, i, part, cos, sin);
      }
    });
  }
}

void rotate(const Rotary& op, int64_t first, int64_t last) {
  by_type(op.type, [&](auto tag) { rotate_rows<decltype(tag)::kType>(op, first, last); });
}

template <Dtype T>
float max_of(const void* x, int64_t n) {
  V greatest[4] = {V::all(-__builtin_inff()), greatest[0], greatest[0], greatest[0]};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    V& g = greatest[i / kLanes % 4];
    g = V::nan_max(g, V::load<T>(x, i));
  }
  float most = V::greatest(V::nan_max(V::nan_max(greatest[0], greatest[1]), V::nan_max(greatest[2], greatest[3])));
  for (; i < n; ++i) {
    const float f = V::one<T>(x, i);
    if (f > most || f != f) most = f;
  }
  return most;
}

float max(const float* x, int64_t n) { return max_of<Dtype::f32>(x, n); }

template <Dtype T>
int64_t argmax_of(const void* x, int64_t n) {
  constexpr int64_t kStep = 4096;  // so that what is searched for its maximum is still in the cache
  int64_t best_step = 0;
  float best = max_of<T>(x, n < kStep ? n : kStep);
  for (int64_t i = kStep; i < n && best == best; i += kStep) {
    const float most = max_of<T>(at(x, i, T), n - i < kStep ? n - i : kStep);
    if (most > best || most != most) {
      best = most;
      best_step = i;
    }
  }
  for (int64_t i = best_step;; ++i) {
    const float f = V::one<T>(x, i);
    if (best == best ? f == best : f != f) return i;
  }
}

void argmax(const Argmax& op, int64_t first, int64_t last) {
  by_type(op.type, [&](auto tag) {
    constexpr Dtype T = decltype(tag)::kType;
    for (int64_t r = first; r < last; ++r) op.out[r] = argmax_of<T>(at(op.x, r * op.x_stride, T), op.n);
  });
}

float exp_sum(const float* x, int64_t n, float shift, float* out) {
  Sums sums;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V e = exp(V::load<Dtype::f32>(x, i) - V::all(shift));
    if (out) V::store<Dtype::f32>(out, i, e);
    V& s = sums.s[i / kLanes % 4];
    s = s + e;
  }
  float total = sums.total();
  if (i == n) return total;
  float rest[kLanes];
  V::store<Dtype::f32>(rest, 0, exp(V::load<Dtype::f32>(x, i, int(n - i)) - V::all(shift)));
  for (int64_t j = i; j < n; ++j) {
    if (out) out[j] = rest[j - i];
    total += rest[j - i];
  }
  return total;
}

void subtract(const float* x, int64_t n, float first, float second, float* out) {
  by_vector(n, [=](int64_t i, auto part) {
    part.template store<Dtype::f32>(out, i, part.template load<Dtype::f32>(x, i) - V::all(first) - V::all(second));
  });
}

void multiply(const float* x, int64_t n, float factor, float* out) {
  by_vector(n, [=](int64_t i, auto part) {
    part.template store<Dtype::f32>(out, i, part.template load<Dtype::f32>(x, i) * V::all(factor));
  });
}

void block_max(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kBlock) *out++ = max_of<Dtype::f32>(x + i, n - i < kBlock ? n - i : kBlock);
}

int64_t collect(const float* x, int64_t n, float bound, int32_t* index) {
  const int32_t* const begin = index;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V v = V::load<Dtype::f32>(x, i);
    if (V::any_at_least(v, bound)) index = V::indices_at_least(v, bound, int32_t(i), index);
  }
  for (; i < n; ++i)
    if (x[i] >= bound) *index++ = int32_t(i);
  return index - begin;
}

void mask_below(float* x, int64_t n, float bound) {
  by_vector(n, [=](int64_t i, auto part) {
    const V v = part.template load<Dtype::f32>(x, i);
    part.template store<Dtype::f32>(x, i, V::if_negative(v - V::all(bound), V::all(-__builtin_inff()), v));
  });
}

constexpr Level level_of(Isa isa) {
  return {isa, rms_norm, gate, rotate, argmax, max, exp_sum, subtract, multiply, block_max, collect, mask_below};
}

}  // namespace
}  // namespace axiond::small
