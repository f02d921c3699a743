// What operations on rows are made of, written once over a vector V of 16 floats that a vector_<isa>.h defines before this.
// Everything is in an unnamed namespace, so that no function compiled for one instruction set can be linked into another.
//
// V has: load<T>(p, i), load<T>(p, i, count) with zeros after count, store<T>(p, i, v), store<T>(p, i, v, count), all(f),
// + - * /, fma(a, b, c) = a * b + c, at_least(v, low) and at_most(v, high) that keep a NaN in v, nan_max(a, b) that is
// NaN if either is, abs(v), if_negative(v, a, b), scale(v, t) = v * 2^n for t = n + kMagic, unzip(a, b) and zip(a, b) in
// place, sum(v) and greatest(v) in a tree (i with i + 8, then i + 4, i + 2, i + 1), any_at_least(v, bound), and
// indices_at_least(v, bound, first, out) that stores first + the lanes that are.
#pragma once

#include <cstdint>

#include "../dtype.h"
#include "vector.h"

namespace axiond::small {
namespace {

constexpr int64_t kLanes = 16;

template <Dtype T>
struct Tag {
  static constexpr Dtype kType = T;
};

template <class F>
inline void by_type(Dtype type, F f) {
  switch (type) {
    case Dtype::f32: return f(Tag<Dtype::f32>{});
    case Dtype::f16: return f(Tag<Dtype::f16>{});
    case Dtype::bf16: return f(Tag<Dtype::bf16>{});
  }
}

inline char* at(void* base, int64_t element, Dtype type) {
  return static_cast<char*>(base) + element * (type == Dtype::f32 ? 4 : 2);
}
inline const char* at(const void* base, int64_t element, Dtype type) {
  return static_cast<const char*>(base) + element * (type == Dtype::f32 ? 4 : 2);
}

// f(i, n) for the i of each full vector, with n a constant, and last with what remains.
struct Full {
  template <Dtype T> V load(const void* p, int64_t i) const { return V::load<T>(p, i); }
  template <Dtype T> void store(void* p, int64_t i, V v) const { V::store<T>(p, i, v); }
};
struct Part {
  int count;
  template <Dtype T> V load(const void* p, int64_t i) const { return V::load<T>(p, i, count); }
  template <Dtype T> void store(void* p, int64_t i, V v) const { V::store<T>(p, i, v, count); }
};
template <class F>
inline void by_vector(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, Full{});
  if (i < n) f(i, Part{int(n - i)});
}

// Four running sums, so that one addition need not wait for the last.
struct Sums {
  V s[4] = {V::all(0), V::all(0), V::all(0), V::all(0)};
  float total() const { return V::sum((s[0] + s[1]) + (s[2] + s[3])); }
};

// The polynomial is that of Cephes' expf; what is too small becomes 0 and what is too large infinity, as in C.
inline V exp(V x) {
  x = V::at_most(V::at_least(x, -104.0f), 89.0f);
  const V t = V::fma(x, V::all(1.44269504088896341f), V::all(kMagic)), n = t - V::all(kMagic);
  const V r = V::fma(n, V::all(2.12194440e-4f), V::fma(n, V::all(-0.693359375f), x));
  V y = V::fma(V::all(1.9875691500e-4f), r, V::all(1.3981999507e-3f));
  y = V::fma(y, r, V::all(8.3334519073e-3f));
  y = V::fma(y, r, V::all(4.1665795894e-2f));
  y = V::fma(y, r, V::all(1.6666665459e-1f));
  y = V::fma(y, r, V::all(5.0000001201e-1f));
  y = V::fma(y, r * r, r) + V::all(1);
  return V::scale(y, t);
}

// By exp of a negative number, which does not overflow where the result is still a normal number.
inline V x_times_sigmoid(V x, V of) {
  const V e = exp(V::all(0) - V::abs(of));
  return x * V::if_negative(of, e, V::all(1)) / (V::all(1) + e);
}

// The complementary error function of z >= 0, to 1.2e-7 of its value everywhere. Source: erfcc of Numerical Recipes.
inline V erfc(V z) {
  constexpr float kCoefficients[] = {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f,
                                     0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
  const V t = V::all(1) / V::fma(z, V::all(0.5f), V::all(1));
  V y = V::all(0.17087277f);
  for (const float c : kCoefficients) y = V::fma(y, t, V::all(c));
  return t * exp(y - z * z);
}

// By the error function.
inline V gelu(V x) {
  const V tail = erfc(V::abs(x) * V::all(0.70710678118f));
  return V::all(0.5f) * x * V::if_negative(x, tail, V::all(2) - tail);
}

}  // namespace
}  // namespace axiond::small
