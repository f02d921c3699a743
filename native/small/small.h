// The small operations around the linear layers, each one pass over memory.
//
// All of them compute in IEEE single precision, in an order fixed by the shapes alone, and round once at the end. So a
// result does not depend on the instruction set, on the number of threads or on the other rows, to the last bit.
// Rows may be strided; within a row elements follow each other. Strides count elements. Rows of the output may be the
// same as those of an input of the same shape, and may not overlap it in any other way.
#pragma once

#include <cstdint>

#include "../dtype.h"
#include "../isa.h"

namespace axiond::small {

// y = x / sqrt(mean(x * x) + epsilon) * (weight + weight_offset), with x + residual for x if there is a residual.
struct RmsNorm {
  int64_t rows, n;
  Dtype type, weight_type;
  const void* x;
  int64_t inner_rows, x_stride, x_inner_stride;  // row r of x is at r / inner_rows * x_stride + r % inner_rows * x_inner_stride
  const void* residual;                          // [rows][n] or null
  int64_t residual_stride;
  void* sum;  // [rows][n], the rounded x + residual; may be `residual`. Unused without one.
  const void* weight;  // [n] or null for ones
  float weight_offset, epsilon;
  void* out;  // [rows][n]
  int64_t out_stride;  // of sum, too
};

enum class Activation : int { silu, gelu, gelu_tanh };

// y = activation(gate) * up. gelu is the one of the error function.
struct Gate {
  int64_t rows, n;
  Dtype type;
  Activation activation;
  const void *gate, *up;  // [rows][n] each
  int64_t stride;         // of both
  void* out;
  int64_t out_stride;
};

// Turn pairs of elements of each head by the angle of the row's position, in place. Pairs are (i, i + rotary_dim / 2),
// or (2i, 2i + 1) if interleaved. Elements from rotary_dim on stay.
struct Rotary {
  int64_t rows, head_size, rotary_dim;
  Dtype type;
  bool interleaved;
  const int64_t* positions;  // [rows]
  const void* cos_sin;       // [positions][rotary_dim], of `type`: the cosines, then the sines
  void* query;
  int64_t query_heads, query_stride, query_head_stride;
  void* key;  // null if key_heads is 0
  int64_t key_heads, key_stride, key_head_stride;
};

// In log form y = x - max - log(sum(exp(x - max))), else y = exp(x - max) / sum(exp(x - max)). Of floats.
struct Softmax {
  int64_t rows, n;
  const float* x;
  int64_t x_stride;
  float* out;
  int64_t out_stride;
  bool log;
};

// The index of the greatest element, the first of equal ones; a NaN is greater than any number.
struct Argmax {
  int64_t rows, n;
  Dtype type;
  const void* x;
  int64_t x_stride;
  int64_t* out;  // [rows]
};

// Set to minus infinity, in place, all but the k greatest of each row (those equal to the k-th stay too); and of what
// is left all but the greatest whose probabilities sum to p (of equal ones those at the end stay; one always stays).
// A row with a NaN in it stays as it is.
struct TopKTopP {
  int64_t rows, n;
  float* x;
  int64_t x_stride;
  const int64_t* k;  // [rows], 1 to n; or null
  const float* p;    // [rows], above 1 means 1; or null
};

constexpr int kBlock = 64;  // elements of one `block_max`

// What each level of instruction set brings. Rows are [first, last).
struct Level {
  Isa isa;
  void (*rms_norm)(const RmsNorm&, int64_t first, int64_t last);
  void (*gate)(const Gate&, int64_t first, int64_t last);
  void (*rotate)(const Rotary&, int64_t first, int64_t last);
  void (*argmax)(const Argmax&, int64_t first, int64_t last);
  // The greatest of x; NaN if there is a NaN. n is at least 1.
  float (*max)(const float* x, int64_t n);
  // The sum of exp(x - shift), whose terms go to out if it is not null.
  float (*exp_sum)(const float* x, int64_t n, float shift, float* out);
  void (*subtract)(const float* x, int64_t n, float first, float second, float* out);  // (x - first) - second
  void (*multiply)(const float* x, int64_t n, float factor, float* out);
  // out[i] = the greatest of x[kBlock * i] and those after it up to the next block.
  void (*block_max)(const float* x, int64_t n, float* out);
  // The indices, rising, of the elements that are at least `bound`; returns how many. Room for n + 16 indices.
  int64_t (*collect)(const float* x, int64_t n, float bound, int32_t* index);
  // Elements below `bound` become minus infinity.
  void (*mask_below)(float* x, int64_t n, float bound);
};
extern const Level kPortable;
#if defined(__aarch64__)
extern const Level kNeon;
#elif defined(__x86_64__)
extern const Level kAvx512vnni;
#endif

// The best level that may run.
const Level& level();

// On one thread if the work is small, else on all of OpenMP's threads.
void run(const RmsNorm& op);
void run(const Gate& op);
void run(const Rotary& op);
void run(const Softmax& op);
void run(const Argmax& op);
void run(const TopKTopP& op);

// One row of TopKTopP.
void top_k_top_p(const Level& level, float* x, int64_t n, int64_t k, float p);

}  // namespace axiond::small
