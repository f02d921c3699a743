#include "memory.h"

#include <sys/mman.h>

#include <mutex>
#include <new>

namespace axiond {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kSharedMapping = 32 * kHugePage;

size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

std::shared_ptr<uint8_t> map(size_t bytes) {
  const size_t whole = bytes + kHugePage;  // room to align
  void* at = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) throw std::bad_alloc();
  auto* aligned = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<size_t>(at), kHugePage));
  madvise(aligned, bytes, MADV_HUGEPAGE);  // only advice: a kernel without huge pages refuses it
  return {aligned, [at, whole](uint8_t*) { munmap(at, whole); }};
}

}  // namespace

std::shared_ptr<uint8_t> huge_buffer(size_t bytes) {
  static std::mutex mutex;
  static std::shared_ptr<uint8_t> shared;
  static size_t used = kSharedMapping;
  bytes = round_up(bytes, 64);
  if (bytes > kSharedMapping / 4) return map(round_up(bytes, kHugePage));
  const std::lock_guard<std::mutex> lock(mutex);
  if (used + bytes > kSharedMapping) {
    shared = map(kSharedMapping);
    used = 0;
  }
  std::shared_ptr<uint8_t> buffer(shared, shared.get() + used);
  used += bytes;
  return buffer;
}

}  // namespace axiond
