// What lies between the linear layers of a BERT. Rows follow each other; lengths of rows are multiples of 16.
#pragma once

#include <cstdint>

#include "../isa.h"

namespace axiond::encoder {

struct Norm {
  const float *weight, *bias;
};

// Softmax(q k^T) v of each head. The queries have been divided by the root of head_size.
struct Attention {
  int64_t length, heads, head_size;
  const float* qkv;  // [length][3][heads][head_size]
  float* out;        // [length][heads][head_size]
  float* work;       // attention_work() floats
};

constexpr int64_t kQueries = 16;  // whose scores are in memory at a time

inline int64_t padded(int64_t length) { return (length + 15) / 16 * 16; }
inline int64_t attention_work(int64_t length, int64_t head_size) { return padded(length) * (head_size + kQueries); }

// What each level of instruction set brings, with the same bits.
struct Level {
  Isa isa;
  void (*widen)(const uint16_t* halves, int64_t n, float* x);  // from float16
  // x = (v - mean(v)) / sqrt(variance(v) + epsilon) * weight + bias, with v = x + more.
  void (*add_norm)(float* x, const float* more, int64_t n, const Norm& norm, float epsilon);
  void (*gelu)(float* x, int64_t n);
  void (*attend)(const Attention& a);
  void (*mean)(const float* x, int64_t rows, int64_t n, float* out);
  void (*to_length_1)(float* x, int64_t n);
};
extern const Level kPortable;
#if defined(__aarch64__)
extern const Level kNeon;
#elif defined(__x86_64__)
extern const Level kAvx2, kAvx512vnni;
#endif

// The best level that may run.
const Level& level();

}  // namespace axiond::encoder
