// Linear layers with packed weights: dst[m][n] = sum over k of lhs[m][k] * rhs[n][k], plus bias[n].
//
// Weights (rhs) are packed once, in one layout for every instruction set: panels of 16 columns (values of n), padded
// with zeros, one after the other.
//
//   q4    per group of k: a header of 64 bytes (16 scales of 16 bit; 16 int8, each 8 - zero point; 16 spare bytes),
//         then for each 32 k four rows of 64 bytes: row j holds k = 4j..4j+3 in the low nibbles and k = 16+4j..16+4j+3
//         in the high ones, byte = 4 * column + k % 4. A nibble is q - 8 as a signed 4-bit number (q xor 8).
//   q8    a header of 64 bytes (16 float scales), then for each 4 k a row of 64 bytes: byte = 4 * column + k % 4.
//   bf16  for each 2 k a row of 64 bytes: half = 2 * column + k % 2. No header.
//
// A row of 64 bytes is one AVX-512 operand of VPDPBUSD (VDPBF16PS), and four NEON operands of SDOT (BFDOT) by lane; ZIP
// of two rows that follow each other in k gives the operands of SMMLA (BFMMLA).
//
// Activations (lhs) of q4 and q8 are rounded to int8 per row and group: scale = amax / 127, q = rint(x * (127 / amax)),
// and the sum of q. amax is the largest of the |x| as unsigned bits, so that an infinity or a NaN wins and spoils its row
// and no other; then q is anything. With amax below kTiny the group counts as zeros: scale, q and sum are 0.
// Then, for groups in rising order, f = fma(float(acc), s, f) with
//   q4  acc = sum q_lhs * (q_rhs - 8) + (8 - zero point) * sum q_lhs     s = scale_rhs * scale_lhs
//   q8  acc = sum q_lhs * q_rhs                                          s = scale_lhs; at the end f *= scale_rhs
// in IEEE single precision. Every kernel does just these operations, so the result does not depend on the instruction
// set, on the number of threads or on which other rows are in the batch, to the last bit.
//
// `exact` q4 and bf16 weights multiply activations in bfloat16 with float sums; there the order is free. Two
// bfloat16 hold a float16, and of a float32 the first 16 bits of 24.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../dtype.h"
#include "../isa.h"

namespace axiond::linear {

constexpr int kColumns = 16;
constexpr int kRowBytes = 64;
constexpr int kHeaderBytes = 64;
constexpr int kBlockK = 32;  // k is a multiple of this
constexpr int kMaxGroup = 128;
constexpr float kTiny = 0x1p-100f;
constexpr int kMaxTile = 8 * 1024;  // floats of one micro-kernel call's result

enum class Format : int { q4, q8, bf16 };

struct Rhs {
  Format format;
  Dtype scale_type;  // of q4's headers: f16 or bf16
  int64_t n, k;
  int group;  // 32, 64 or 128, a divisor of k; for q8 and bf16 it is the group of the activations
  const uint8_t* data;  // 64-byte aligned

  int64_t panels() const { return (n + kColumns - 1) / kColumns; }
  int64_t panel_bytes() const {
    switch (format) {
      case Format::q4: return k / group * (kHeaderBytes + group / 32 * 4 * kRowBytes);
      case Format::q8: return kHeaderBytes + k / 4 * kRowBytes;
      default: return k / 2 * kRowBytes;
    }
  }
};

// One call of a micro-kernel: dst[rows][panels * 16] = the float product, bias left out. It writes every column of the
// tile, padding too, and nothing outside. It allocates nothing and starts no thread.
struct Tile {
  int64_t rows, panels;
  int64_t k;
  int group;
  Dtype scale_type;
  const void* lhs;          // of the first row; layout as the kernel's row in the table says
  const float* lhs_scale;   // [rows][k / group]; null for bf16 activations
  const int32_t* lhs_sum;   // [rows][k / group]; null for bf16 activations
  const uint8_t* rhs;       // first panel
  int64_t panel_bytes;      // from one panel to the next
  float* dst;               // 64-byte aligned
  int64_t dst_stride;       // floats from row to row, a multiple of 16
};

using TileFn = void (*)(const Tile&);

enum class Op : int { q4, q8, q4_exact, bf16 };

// How rows of activations are laid out for a kernel.
//   rows   [m][k]
//   pairs  [m / 2][k / c][2][c], c = 8 for int8, 4 for bf16: the operands of SMMLA and BFMMLA. m is padded to even.
enum class LhsLayout : int { rows, pairs };

struct Kernel {
  const char* name;  // op_dst_lhs_rhs_tile_isa
  Op op;
  Isa isa;
  int min_rows;       // m from which it is the choice at its level
  int max_rows;       // most rows of one call
  int max_panels;     // most panels of one call; 16 * max_panels * max_rows is at most kMaxTile
  LhsLayout layout;
  TileFn run;
};

// Per-level helpers around the kernels, with the same results to the last bit on every level.
struct Helpers {
  Isa isa;
  // Round one row of k activations, group by group. q goes to q + 16 * i (pairs) or q + 8 * i (rows) for the i-th run
  // of 8, that is `chunk_stride` bytes apart.
  void (*quantize)(const void* x, Dtype type, int64_t k, int group, int8_t* q, int64_t chunk_stride, float* scale,
                   int32_t* sum);
  // dst[i] = f[i] + bias[i], rounded once; bias of the same type as dst, or null.
  void (*finish)(const float* f, const void* bias, void* dst, Dtype type, int64_t n);
  // x = high + low in bfloat16, in runs of 4 `chunk_stride` halves apart; low may be null (then x is rounded).
  void (*split)(const void* x, Dtype type, int64_t k, uint16_t* high, uint16_t* low, int64_t chunk_stride);
};

// What each level brings: plain data, so that nothing of a level runs before the CPU is known to have it.
struct Level {
  const Kernel* kernels;  // best first within one op
  int count;
  Helpers helpers;  // null if those of a lower level serve
};
extern const Level kPortable;
#if defined(__aarch64__)
extern const Level kNeon, kNeonDotprod, kNeonI8mm, kNeonBf16;
#elif defined(__x86_64__)
extern const Level kAvx2, kAvx512vnni, kAvx512bf16;
#endif

// The kernel for m rows at the active level: the highest permitted level that has one whose min_rows <= m.
const Kernel& choose(Op op, int64_t m);
const Helpers& helpers();

// One product, and the memory it works in.
struct Job {
  Rhs rhs;
  bool exact;  // q4 only: do not round the activations
  int64_t m;
  const void* x;
  Dtype type;        // of x, bias and dst
  int64_t x_stride;  // elements from row to row
  const void* bias;  // [n] or null
  void* dst;         // [m][n]
};

// Multiply on all of OpenMP's threads in one parallel region. In run.cc.
void run(const Job& job);

// The two phases of run(): every thread calls prepare(), then all wait for each other, then every
// thread calls multiply(). `work` is 64-byte aligned and holds work_bytes().
int64_t work_bytes(const Job& job);
void prepare(const Job& job, void* work, int thread, int threads);
void multiply(const Job& job, const void* work, int thread, int threads);

}  // namespace axiond::linear
