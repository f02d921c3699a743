// Levels of instruction sets, and which of them this CPU may run.
#pragma once

#include <string>

namespace axiond {

// Within one architecture each level includes those before it.
enum class Isa { portable, neon, neon_dotprod, neon_i8mm, neon_bf16, avx2, avx512vnni, avx512bf16 };

const char* name_of(Isa isa);

// The highest level that this CPU has, read once.
Isa detected_isa();

// The level in force: AXIOND_FORCE_ISA if set, else the detected one.
// Throws std::invalid_argument for a name that is unknown, or a level that this CPU lacks.
Isa active_isa();

// Replaces the level in force; "" goes back to the detected one. Throws as active_isa().
void force_isa(const std::string& name);

// Whether code of level `isa` may run while `active` is in force.
bool permits(Isa active, Isa isa);

}  // namespace axiond
