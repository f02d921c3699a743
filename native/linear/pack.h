// Weights from rows of k into the panels that linear.h describes. Padding columns become zeros.
#pragma once

#include "linear.h"

namespace axiond::linear {

// How a checkpoint holds 4-bit numbers.
enum class Nibbles : int {
  bytes,         // [n][k], one of 0..15 a byte
  signed_bytes,  // [n][k], one of -8..7 a byte
  words,         // [n][k / 8] words of eight along k, lowest bits first
  awq,           // [n / 8][k] words of eight along n, in AWQ's order: 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits up
};

// Strides count bytes or words from one value of the first index to the next, and of the second, where it is 1 for bytes.
struct Quarters {
  const void* data;
  Nibbles kind;
  int64_t stride_n, stride_k;
};

// scales [n][k / group] of rhs.scale_type; zero_points [n][k / group] of 0..15, or null for 8. With Nibbles::awq n is a
// multiple of 8.
void pack_q4(const Rhs& rhs, const Quarters& q, const uint16_t* scales, const uint8_t* zero_points, uint8_t* to);
// q [n][k] of -127..127; scales [n].
void pack_q8(const Rhs& rhs, const int8_t* q, const float* scales, uint8_t* to);
// weight [n][k] in `type`, each row rounded to -127..127 times a scale of its own: amax / 127.
void round_q8(const Rhs& rhs, const void* weight, Dtype type, uint8_t* to);
// weight [n][k] in bfloat16.
void pack_bf16(const Rhs& rhs, const uint16_t* weight, uint8_t* to);

}  // namespace axiond::linear
