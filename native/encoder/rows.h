// The operations of ops.h over a vector V of 16 floats, which each <isa>.cc brings before including this, with
// kAccumulators: how many of V fit into registers beside what is multiplied.
#include <type_traits>
#include <utility>

#include "../small/vector_math.h"
#include "ops.h"

#define AXIOND_INLINE __attribute__((always_inline))
#define AXIOND_EACH(i) [&](auto i) AXIOND_INLINE

namespace axiond::encoder {
namespace {

using small::V;
constexpr Dtype kF32 = Dtype::f32;
constexpr int kLanes = 16;

inline V load(const float* from) { return V::load<kF32>(from, 0); }
inline void store(float* to, V v) { V::store<kF32>(to, 0, v); }

void widen(const uint16_t* halves, int64_t n, float* x) {
  for (int64_t i = 0; i < n; i += kLanes) store(x + i, V::load<Dtype::f16>(halves, i));
}

void add_norm(float* x, const float* more, int64_t n, const Norm& norm, float epsilon) {
  small::Sums sums, squares;
  for (int64_t i = 0; i < n; i += kLanes) {
    const V v = load(x + i) + load(more + i);
    store(x + i, v);
    sums.s[i / kLanes % 4] = sums.s[i / kLanes % 4] + v;
  }
  const V mean = V::all(sums.total() / float(n));
  for (int64_t i = 0; i < n; i += kLanes) {
    const V v = load(x + i) - mean;
    squares.s[i / kLanes % 4] = V::fma(v, v, squares.s[i / kLanes % 4]);
  }
  const V factor = V::all(1.0f / __builtin_sqrtf(squares.total() / float(n) + epsilon));
  for (int64_t i = 0; i < n; i += kLanes)
    store(x + i, V::fma((load(x + i) - mean) * factor, load(norm.weight + i), load(norm.bias + i)));
}

// To 4e-7; beyond 4 it is as near to 1 as that. Source: Eigen's erf for floats, before version 3.5.
inline V erf(V x) {
  constexpr float kOver[] = {2.77068142495902e-08f,  -2.10102402082508e-06f, -5.69250639462346e-05f,
                             -7.34990630326855e-04f, -2.95459980854025e-03f, -1.60960333262415e-02f};
  constexpr float kUnder[] = {-2.13374055278905e-04f, -1.68282697438203e-03f, -7.37332916720468e-03f, -1.42647390514189e-02f};
  x = V::at_most(V::at_least(x, -4.0f), 4.0f);
  const V square = x * x;
  V over = V::all(-2.72614225801306e-10f), under = V::all(-1.45660718464996e-05f);
  for (const float c : kOver) over = V::fma(over, square, V::all(c));
  for (const float c : kUnder) under = V::fma(under, square, V::all(c));
  return x * over / under;
}

// To 2e-6, far below what its result is rounded to next.
void gelu(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const V v = load(x + i), half = v * V::all(0.5f);
    store(x + i, V::fma(half, erf(v * V::all(0.70710678118f)), half));
  }
}

// A row-major matrix; a stride counts elements from row to row.
struct Matrix {
  const float* at;
  int64_t stride;
};

template <class F, int... I>
AXIOND_INLINE inline void each_of(std::integer_sequence<int, I...>, F f) {
  (f(std::integral_constant<int, I>()), ...);
}

// f(0) to f(N - 1) with constant arguments: arrays of accumulators stay in registers only under constant indices.
template <int N, class F>
AXIOND_INLINE inline void each(F f) {
  each_of(std::make_integer_sequence<int, N>(), f);
}

// dst[R][16 * C] = a[R][k] * b[k][16 * C].
template <int R, int C>
inline void multiply_tile(Matrix a, Matrix b, int64_t k, float* dst, int64_t dst_stride) {
  V acc[R][C];
  each<R>(AXIOND_EACH(r) { each<C>(AXIOND_EACH(c) { acc[r][c] = V::all(0); }); });
  for (int64_t i = 0; i < k; ++i) {
    V right[C];
    each<C>(AXIOND_EACH(c) { right[c] = load(b.at + i * b.stride + c * kLanes); });
    each<R>(AXIOND_EACH(r) {
      const V left = V::all(a.at[r * a.stride + i]);
      each<C>(AXIOND_EACH(c) { acc[r][c] = V::fma(left, right[c], acc[r][c]); });
    });
  }
  each<R>(AXIOND_EACH(r) { each<C>(AXIOND_EACH(c) { store(dst + r * dst_stride + c * kLanes, acc[r][c]); }); });
}

template <int R, int C>
void multiply_rows(Matrix a, int64_t m, Matrix b, int64_t k, float* dst, int64_t dst_stride) {
  for (; m >= R; m -= R, a.at += R * a.stride, dst += R * dst_stride) multiply_tile<R, C>(a, b, k, dst, dst_stride);
  if constexpr (R > 1)
    if (m > 0) multiply_rows<R / 2, C>(a, m, b, k, dst, dst_stride);
}

template <int C>
void multiply_columns(Matrix a, int64_t m, Matrix b, int64_t n, int64_t k, float* dst, int64_t dst_stride) {
  constexpr int kRows = kAccumulators / C < 8 ? kAccumulators / C : 8;
  for (; n >= C * kLanes; n -= C * kLanes, b.at += C * kLanes, dst += C * kLanes)
    multiply_rows<kRows, C>(a, m, b, k, dst, dst_stride);
  if constexpr (C > 1)
    if (n > 0) multiply_columns<C / 2>(a, m, b, n, k, dst, dst_stride);
}

// dst[m][n] = a[m][k] * b[k][n]; n is a multiple of 16.
void multiply(Matrix a, int64_t m, Matrix b, int64_t n, int64_t k, float* dst, int64_t dst_stride) {
  multiply_columns<(kAccumulators >= 16 ? 4 : 1)>(a, m, b, n, k, dst, dst_stride);
}

// 16 x 16. Each round turns the number of an element, row and lane, by one bit.
inline void transpose(V (&v)[kLanes]) {
  for (int round = 0; round < 4; ++round) {
    V to[kLanes];
    for (int i = 0; i < 8; ++i) {
      to[2 * i] = v[i];
      to[2 * i + 1] = v[i + 8];
      V::zip(to[2 * i], to[2 * i + 1]);
    }
    for (int i = 0; i < kLanes; ++i) v[i] = to[i];
  }
}

// to[n][padded(m)] = from[m][n], with zeros behind.
void transpose(Matrix from, int64_t m, int64_t n, float* to) {
  for (int64_t row = 0; row < m; row += kLanes)
    for (int64_t column = 0; column < n; column += kLanes) {
      V v[kLanes];
      for (int i = 0; i < kLanes; ++i) v[i] = row + i < m ? load(from.at + (row + i) * from.stride + column) : V::all(0);
      transpose(v);
      for (int i = 0; i < kLanes; ++i) store(to + (column + i) * padded(m) + row, v[i]);
    }
}

// x = exp(x - max(x)); returns their sum.
float exp_all(float* x, int64_t n) {
  V greatest = V::all(x[0]);
  small::by_vector(n, [&](int64_t i, auto part) {
    if constexpr (std::is_same_v<decltype(part), small::Full>)
      greatest = V::nan_max(greatest, load(x + i));
    else
      for (; i < n; ++i) greatest = V::nan_max(greatest, V::all(x[i]));
  });
  const V shift = V::all(V::greatest(greatest));
  V sum = V::all(0);
  small::by_vector(n, [&](int64_t i, auto part) {
    part.template store<kF32>(x, i, small::exp(part.template load<kF32>(x, i) - shift));
    sum = sum + part.template load<kF32>(x, i);
  });
  return V::sum(sum);
}

void attend(const Attention& a) {
  const int64_t width = a.heads * a.head_size, stride = padded(a.length);
  float *keys = a.work, *scores = a.work + stride * a.head_size;
  for (int64_t head = 0; head < a.heads; ++head) {
    const float* query = a.qkv + head * a.head_size;
    const Matrix key{query + width, 3 * width}, value{query + 2 * width, 3 * width};
    transpose(key, a.length, a.head_size, keys);
    for (int64_t first = 0; first < a.length; first += kQueries) {
      const int64_t rows = a.length - first < kQueries ? a.length - first : kQueries;
      float* out = a.out + first * width + head * a.head_size;
      multiply({query + first * 3 * width, 3 * width}, rows, {keys, stride}, stride, a.head_size, scores, stride);
      float factor[kQueries];
      for (int64_t r = 0; r < rows; ++r) factor[r] = 1.0f / exp_all(scores + r * stride, a.length);
      multiply({scores, stride}, rows, value, a.head_size, a.length, out, width);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < a.head_size; i += kLanes)
          store(out + r * width + i, load(out + r * width + i) * V::all(factor[r]));
    }
  }
}

void mean(const float* x, int64_t rows, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    V sum = V::all(0);
    for (int64_t r = 0; r < rows; ++r) sum = sum + load(x + r * n + i);
    store(out + i, sum / V::all(float(rows > 0 ? rows : 1)));
  }
}

void to_length_1(float* x, int64_t n) {
  small::Sums squares;
  for (int64_t i = 0; i < n; i += kLanes)
    squares.s[i / kLanes % 4] = V::fma(load(x + i), load(x + i), squares.s[i / kLanes % 4]);
  const float length = __builtin_sqrtf(squares.total());
  const V factor = V::all(1.0f / (length > 1e-12f ? length : 1e-12f));
  for (int64_t i = 0; i < n; i += kLanes) store(x + i, load(x + i) * factor);
}

constexpr Level level_of(Isa isa) { return {isa, widen, add_norm, gelu, attend, mean, to_length_1}; }

}  // namespace
}  // namespace axiond::encoder
