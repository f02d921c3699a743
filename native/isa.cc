#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

namespace axiond {
namespace {

constexpr const char* kNames[] = {"portable",  "neon",       "neon_dotprod", "neon_i8mm",
                                  "neon_bf16", "avx2",       "avx512vnni", "avx512bf16"};

#if defined(__aarch64__)

// Bits of the kernel's arm64 hwcap.h, spelled out because older headers lack the later ones.
constexpr unsigned long kAsimd = 1ul << 1, kDotprod = 1ul << 20, kI8mm = 1ul << 13, kBf16 = 1ul << 14;

Isa detect() {
  const unsigned long base = getauxval(AT_HWCAP), more = getauxval(AT_HWCAP2);
  if (!(base & kAsimd)) return Isa::portable;
  if (!(base & kDotprod)) return Isa::neon;
  if (!(more & kI8mm)) return Isa::neon_dotprod;
  return more & kBf16 ? Isa::neon_bf16 : Isa::neon_i8mm;
}

#elif defined(__x86_64__)

// Of xgetbv: which registers the operating system saves.
constexpr unsigned kYmm = 0x06, kZmm = 0xe6;

bool saves(unsigned registers) {
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & registers) == registers;
}

Isa detect() {
  unsigned a, b, c, d;
  constexpr unsigned kBasic = 1u << 27 | 1u << 12 | 1u << 29;  // OSXSAVE, FMA, F16C
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & kBasic) != kBasic || !saves(kYmm)) return Isa::portable;
  constexpr unsigned kAvx2 = 1u << 5;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & kAvx2)) return Isa::portable;
  constexpr unsigned kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31, kVnni = 1u << 11;
  const unsigned foundation = kF | kDq | kBw | kVl;
  if ((b & foundation) != foundation || !(c & kVnni) || !saves(kZmm)) return Isa::avx2;
  constexpr unsigned kBf16 = 1u << 5;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kBf16) ? Isa::avx512bf16 : Isa::avx512vnni;
}

#else

Isa detect() { return Isa::portable; }

#endif

Isa parse(const std::string& name) {
  for (int level = 0; level <= int(Isa::avx512bf16); ++level)
    if (name == kNames[level]) return Isa(level);
  std::string known;
  for (const char* each : kNames) known += std::string(known.empty() ? "" : ", ") + each;
  throw std::invalid_argument("AXIOND_FORCE_ISA=" + name + ": there is no such level; there are " + known);
}

Isa checked(const std::string& name) {
  if (name.empty()) return detected_isa();
  const Isa wanted = parse(name);
  if (!permits(detected_isa(), wanted))
    throw std::invalid_argument("AXIOND_FORCE_ISA=" + name + ": this CPU has " + name_of(detected_isa()) + " and not " + name);
  return wanted;
}

std::atomic<int> active{-1};

}  // namespace

const char* name_of(Isa isa) { return kNames[int(isa)]; }

Isa detected_isa() {
  static const Isa found = detect();
  return found;
}

Isa active_isa() {
  if (active.load(std::memory_order_relaxed) < 0) {
    const char* forced = std::getenv("AXIOND_FORCE_ISA");
    active = int(checked(forced ? forced : ""));
  }
  return Isa(active.load(std::memory_order_relaxed));
}

void force_isa(const std::string& name) { active = int(checked(name)); }

bool permits(Isa active, Isa isa) {
  if (isa == Isa::portable) return true;
  const bool same_architecture = (active >= Isa::avx2) == (isa >= Isa::avx2) && active != Isa::portable;
  return same_architecture && isa <= active;
}

}  // namespace axiond
