#include <cmath>
#include <vector>

#include "small.h"

namespace axiond::small {
namespace {

// A parallel region costs some microseconds: so many elements take a thread longer than that.
constexpr int64_t kCheap = 1 << 14, kWithExp = 1 << 13;

constexpr int64_t kChunk = 1 << 14;  // columns of one task of a softmax; fixed, so that the sums are too

template <class F>
void by_rows(int64_t rows, int64_t elements, int64_t enough, F f) {
  const Level& use = level();  // it may throw, which nothing may do in a parallel region
  if (rows == 1 || elements < enough) return f(use, 0, rows);
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; ++r) f(use, r, r + 1);
}

}  // namespace

const Level& level() {
  const Isa active = active_isa();
#if defined(__aarch64__)
  if (permits(active, Isa::neon)) return kNeon;
#elif defined(__x86_64__)
  if (permits(active, Isa::avx512vnni)) return kAvx512vnni;
#endif
  (void)active;
  return kPortable;
}

void run(const RmsNorm& op) {
  by_rows(op.rows, op.rows * op.n, kCheap,
          [&](const Level& use, int64_t first, int64_t last) { use.rms_norm(op, first, last); });
}

void run(const Gate& op) {
  by_rows(op.rows, op.rows * op.n, kWithExp,
          [&](const Level& use, int64_t first, int64_t last) { use.gate(op, first, last); });
}

void run(const Rotary& op) {
  const int64_t elements = op.rows * (op.query_heads + op.key_heads) * op.rotary_dim;
  by_rows(op.rows, elements, kCheap,
          [&](const Level& use, int64_t first, int64_t last) { use.rotate(op, first, last); });
}

void run(const Argmax& op) {
  by_rows(op.rows, op.rows * op.n, kCheap,
          [&](const Level& use, int64_t first, int64_t last) { use.argmax(op, first, last); });
}

void run(const TopKTopP& op) {
  by_rows(op.rows, op.rows * op.n, kCheap, [&](const Level& use, int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r)
      top_k_top_p(use, op.x + r * op.x_stride, op.n, op.k ? op.k[r] : op.n, op.p ? op.p[r] : 1);
  });
}

// Each row is cut into chunks, so that a single row can have all threads too.
void run(const Softmax& op) {
  const Level& use = level();
  const int64_t chunks = (op.n + kChunk - 1) / kChunk, tasks = op.rows * chunks;
  std::vector<float> greatest(static_cast<size_t>(tasks)), sums(greatest.size());
  const auto size = [&](int64_t t) { return t % chunks == chunks - 1 ? op.n - (chunks - 1) * kChunk : kChunk; };
  const auto x = [&](int64_t t) { return op.x + t / chunks * op.x_stride + t % chunks * kChunk; };
  const auto out = [&](int64_t t) { return op.out + t / chunks * op.out_stride + t % chunks * kChunk; };
  const auto row = [&](const std::vector<float>& all, int64_t t) { return all.data() + t / chunks * chunks; };
  const auto max_of_row = [&](int64_t t) { return use.max(row(greatest, t), chunks); };
#pragma omp parallel if (op.rows * op.n >= 2 * kWithExp)
  {
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tasks; ++t) greatest[size_t(t)] = use.max(x(t), size(t));
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tasks; ++t)
      sums[size_t(t)] = use.exp_sum(x(t), size(t), max_of_row(t), op.log ? nullptr : out(t));
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tasks; ++t) {
      float sum = 0;
      for (int64_t c = 0; c < chunks; ++c) sum += row(sums, t)[c];
      if (op.log)
        use.subtract(x(t), size(t), max_of_row(t), std::log(sum), out(t));
      else
        use.multiply(out(t), size(t), 1 / sum, out(t));
    }
  }
}

}  // namespace axiond::small
