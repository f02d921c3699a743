#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "small.h"

namespace axiond::small {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Candidate {
  float value;
  int32_t index;
  float mass;  // exp(value - the greatest value)

  bool operator<(const Candidate& other) const {  // what stays goes first
    return value != other.value ? value > other.value : index > other.index;
  }
};

// Working memory of one row. Each thread keeps its own, since fresh memory of this size costs more than the work.
struct Row {
  const Level& level;
  float* x;
  int64_t n;
  float greatest = 0;
  std::vector<float>& blocks;
  std::vector<int32_t>& indices;
  std::vector<Candidate>& candidates;

  // Candidates become the elements from `low` up to, not including, `high`. Returns their mass.
  double gather(float low, float high) {
    indices.resize(size_t(n) + 16);
    const int64_t count = level.collect(x, n, low, indices.data());
    candidates.clear();
    double mass = 0;
    for (int64_t c = 0; c < count; ++c) {
      const int32_t i = indices[size_t(c)];
      if (x[i] >= high) continue;
      candidates.push_back({x[i], i, std::exp(x[i] - greatest)});
      mass += candidates.back().mass;
    }
    return mass;
  }
};

// The k-th greatest value; the candidates become the elements that are at least that. No element below the k-th
// greatest of the blocks' maxima can be one of them, since k blocks have a greater one.
float kth_greatest(Row& row, int64_t k) {
  float bound = -kInfinity;
  if (k <= int64_t(row.blocks.size())) {
    std::nth_element(row.blocks.begin(), row.blocks.begin() + k - 1, row.blocks.end(), std::greater<>());
    bound = row.blocks[size_t(k - 1)];
  }
  row.gather(bound, kInfinity);
  const auto kth = row.candidates.begin() + k - 1;
  std::nth_element(row.candidates.begin(), kth, row.candidates.end());
  const float value = kth->value;
  const auto end = std::partition(row.candidates.begin(), row.candidates.end(),
                                  [=](const Candidate& c) { return c.value >= value; });
  row.candidates.erase(end, row.candidates.end());
  return value;
}

double mass_of(std::vector<Candidate>::const_iterator from, std::vector<Candidate>::const_iterator to) {
  double mass = 0;
  for (; from != to; ++from) mass += from->mass;
  return mass;
}

// Sorts the candidates as far as needed, and returns the first that does not stay: the mass of what is greater reaches
// `wanted`. `before` is the mass of what is greater than all candidates.
std::vector<Candidate>::iterator cut(std::vector<Candidate>& all, double before, double wanted) {
  auto low = all.begin(), high = all.end();
  while (high - low > 32) {  // halve by mass: sorting all of them would be slow for a flat distribution
    const auto middle = low + (high - low) / 2;
    std::nth_element(low, middle, high);
    const double upper = mass_of(low, middle);
    if (before + upper >= wanted) {
      high = middle;
    } else {
      before += upper;
      low = middle;
    }
  }
  std::sort(low, high);
  for (; low != high && (before < wanted || low == all.begin()); ++low) before += low->mass;
  return low;
}

double mass_of_row(const Row& row) {
  constexpr int64_t kPiece = 1 << 14;
  double mass = 0;
  for (int64_t i = 0; i < row.n; i += kPiece)
    mass += row.level.exp_sum(row.x + i, std::min(kPiece, row.n - i), row.greatest, nullptr);
  return mass;
}

// Gathers, from the greatest down, until the candidates contain the element at which the mass `wanted` is reached.
// Returns the mass of the elements greater than all candidates.
double gather_around(Row& row, double wanted) {
  double before = 0;
  float high = kInfinity;
  for (float depth = 2; depth < 100; depth *= 2) {
    const float low = row.greatest - depth;
    const double mass = row.gather(low, high);
    if (before + mass >= wanted) return before;
    before += mass;
    high = low;
  }
  row.gather(-kInfinity, high);
  return before;
}

}  // namespace

void top_k_top_p(const Level& level, float* x, int64_t n, int64_t k, float p) {
  if (k >= n && !(p < 1)) return;
  thread_local std::vector<float> blocks;
  thread_local std::vector<int32_t> indices;
  thread_local std::vector<Candidate> candidates;
  blocks.resize(size_t((n + kBlock - 1) / kBlock));
  level.block_max(x, n, blocks.data());
  Row row{level, x, n, level.max(blocks.data(), int64_t(blocks.size())), blocks, indices, candidates};
  if (!(std::abs(row.greatest) < kInfinity)) return;  // a NaN, or no distribution

  float bound = k < n ? kth_greatest(row, k) : -kInfinity;
  auto end = candidates.end();
  if (p < 1) {
    const double wanted = p * (k < n ? mass_of(candidates.begin(), candidates.end()) : mass_of_row(row));
    end = cut(candidates, k < n ? 0 : gather_around(row, wanted), wanted);
    if (end != candidates.begin()) bound = (end - 1)->value;
  }
  level.mask_below(x, n, bound);
  for (; end != candidates.end(); ++end) x[end->index] = -kInfinity;  // those equal to the last one that stays
}

}  // namespace axiond::small
