// A linear layer on all of OpenMP's threads. Not in modules that have no OpenMP.
#include <omp.h>

#include <memory>
#include <new>

#include "linear.h"

namespace axiond::linear {
namespace {

constexpr int64_t kSerialPrepare = 16 * 1024;  // activations that one thread rounds faster than threads can meet
constexpr int64_t kSerialRun = 64 * 1024;      // weights that one thread multiplies faster than threads can start

}  // namespace

void run(const Job& job) {
  if (job.m == 0) return;
  constexpr auto kAlignment = std::align_val_t(64);
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, kAlignment); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t held = 0;
  const int64_t needed = work_bytes(job);
  if (needed > held) {
    held = 0;
    memory.reset();  // before, so that the old and the new one are not there together
    memory.reset(::operator new(size_t(needed), kAlignment));
    held = needed;
  }
  void* work = memory.get();
  if (job.m * job.rhs.n * job.rhs.k <= kSerialRun || omp_get_max_threads() == 1) {
    prepare(job, work, 0, 1);
    multiply(job, work, 0, 1);
    return;
  }
  const bool is_serial = job.m * job.rhs.k <= kSerialPrepare;
  if (is_serial) prepare(job, work, 0, 1);
#pragma omp parallel
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    if (!is_serial) {
      prepare(job, work, thread, threads);
#pragma omp barrier
    }
    multiply(job, work, thread, threads);
  }
}

}  // namespace axiond::linear
