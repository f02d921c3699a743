// Weights from rows of k into the panels that linear.h describes. Padding columns become zeros.
#pragma once

#include "linear.h"

namespace axiond::linear {

// q [n][k] of 0..15; scales [n][k / group] of rhs.scale_type; zero_points [n][k / group] of 0..15, or null for 8.
void pack_q4(const Rhs& rhs, const uint8_t* q, const uint16_t* scales, const uint8_t* zero_points, uint8_t* to);
// q [n][k] of -127..127; scales [n].
void pack_q8(const Rhs& rhs, const int8_t* q, const float* scales, uint8_t* to);
// weight [n][k] in bfloat16.
void pack_bf16(const Rhs& rhs, const uint16_t* weight, uint8_t* to);

}  // namespace axiond::linear
