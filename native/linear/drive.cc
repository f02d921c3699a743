// Runs a linear layer: rounds the activations, then shares panels (and rows, where panels are few) out to the threads.
#include <algorithm>

#include "linear.h"

namespace axiond::linear {
namespace {

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

Op op_of(const Job& job) {
  switch (job.rhs.format) {
    case Format::q4: return job.exact ? Op::q4_exact : Op::q4;
    case Format::q8: return Op::q8;
    default: return Op::bf16;
  }
}

struct Range {
  int64_t begin, end;
};

Range share(int64_t total, int part, int parts) { return {total * part / parts, total * (part + 1) / parts}; }

// Where prepare() leaves the activations. In bfloat16, types of more digits take two rows: high and low parts.
struct Lhs {
  const Job& job;
  const Kernel& kernel;
  bool is_int8, is_split, is_in_place;
  int64_t rows, groups;

  explicit Lhs(const Job& j)
      : job(j),
        kernel(choose(op_of(j), j.m)),
        is_int8(kernel.op == Op::q4 || kernel.op == Op::q8),
        is_split(!is_int8 && j.type != Dtype::bf16),
        is_in_place(!is_int8 && !is_split && kernel.layout == LhsLayout::rows && (j.x_stride == j.rhs.k || j.m == 1)),
        rows(kernel.layout == LhsLayout::pairs ? round_up(j.m, 2) : j.m),
        groups(j.rhs.k / j.rhs.group) {}

  int64_t half() const { return is_int8 ? round_up(rows * job.rhs.k, 64) : round_up(rows * job.rhs.k * 2, 64); }
  int64_t values() const { return is_in_place ? 0 : half() * (is_split ? 2 : 1); }
  int64_t scales() const { return is_int8 ? round_up(job.m * groups * 4, 64) : 0; }
  int64_t bytes() const { return values() + 2 * scales(); }

  char* row(void* work, int64_t r) const {
    const int64_t size = is_int8 ? 1 : 2, run = is_int8 ? 8 : 4;
    const int64_t elements = kernel.layout == LhsLayout::rows ? r * job.rhs.k : r / 2 * 2 * job.rhs.k + r % 2 * run;
    return static_cast<char*>(work) + elements * size;
  }
  int64_t chunk_stride() const { return (is_int8 ? 8 : 4) * (kernel.layout == LhsLayout::pairs ? 2 : 1); }
  float* scale(void* work) const { return reinterpret_cast<float*>(static_cast<char*>(work) + values()); }
  int32_t* sum(void* work) const { return reinterpret_cast<int32_t*>(static_cast<char*>(work) + values() + scales()); }
};

void prepare_groups(const Lhs& lhs, void* work, int64_t r, Range g) {
  const Job& job = lhs.job;
  const int64_t first = g.begin * job.rhs.group, k = (g.end - g.begin) * job.rhs.group;
  const auto* x = static_cast<const char*>(job.x) + (r * job.x_stride + first) * size_of(job.type);
  char* to = lhs.row(work, r) + first / (lhs.is_int8 ? 8 : 4) * lhs.chunk_stride() * (lhs.is_int8 ? 1 : 2);
  if (lhs.is_int8) {
    helpers().quantize(x, job.type, k, job.rhs.group, reinterpret_cast<int8_t*>(to), lhs.chunk_stride(),
                       lhs.scale(work) + r * lhs.groups + g.begin, lhs.sum(work) + r * lhs.groups + g.begin);
  } else {
    auto* high = reinterpret_cast<uint16_t*>(to);
    auto* low = reinterpret_cast<uint16_t*>(to + lhs.half());
    helpers().split(x, job.type, k, high, lhs.is_split ? low : nullptr, lhs.chunk_stride());
  }
}

// How the threads stand: beside each other over the panels, and behind each other over the rows where panels are few.
struct Grid {
  int panels, rows;

  Grid(const Job& job, const Kernel& kernel, int threads) {
    const int64_t row_blocks = (job.m + kernel.max_rows - 1) / kernel.max_rows;
    const int64_t wanted = (threads * int64_t(kernel.max_panels) + job.rhs.panels() - 1) / job.rhs.panels();
    rows = int(std::min<int64_t>({wanted, row_blocks, threads}));
    panels = threads / rows;
  }
};

void multiply_block(const Lhs& lhs, void* work, Range rows, Range panels, float* tile) {
  const Job& job = lhs.job;
  const int64_t width = (panels.end - panels.begin) * kColumns, count = rows.end - rows.begin;
  Tile t{count, panels.end - panels.begin, job.rhs.k, job.rhs.group, job.rhs.scale_type, nullptr, nullptr, nullptr,
         job.rhs.data + panels.begin * job.rhs.panel_bytes(), job.rhs.panel_bytes(), tile, width};
  if (lhs.is_int8) {
    t.lhs_scale = lhs.scale(work) + rows.begin * lhs.groups;
    t.lhs_sum = lhs.sum(work) + rows.begin * lhs.groups;
  }
  t.lhs = lhs.is_in_place ? static_cast<const char*>(job.x) + rows.begin * job.x_stride * 2 : lhs.row(work, rows.begin);
  lhs.kernel.run(t);
  if (lhs.is_split) {
    t.lhs = lhs.row(work, rows.begin) + lhs.half();
    t.dst = tile + count * width;
    lhs.kernel.run(t);
    for (int64_t i = 0; i < count * width; ++i) tile[i] += tile[count * width + i];
  }
  const int64_t column = panels.begin * kColumns, size = size_of(job.type);
  for (int64_t r = 0; r < count; ++r)
    helpers().finish(tile + r * width, job.bias ? static_cast<const char*>(job.bias) + column * size : nullptr,
                     static_cast<char*>(job.dst) + ((rows.begin + r) * job.rhs.n + column) * size, job.type,
                     std::min(width, job.rhs.n - column));
}

}  // namespace

int64_t work_bytes(const Job& job) { return Lhs(job).bytes(); }

void prepare(const Job& job, void* work, int thread, int threads) {
  const Lhs lhs(job);
  if (lhs.is_in_place) return;
  // With fewer rows than threads each row is cut, at group borders.
  const int cuts = int(std::min<int64_t>(std::max<int64_t>(threads / std::max<int64_t>(job.m, 1), 1), lhs.groups));
  const Range units = share(job.m * cuts, thread, threads);
  for (int64_t unit = units.begin; unit < units.end; ++unit)
    prepare_groups(lhs, work, unit / cuts, share(lhs.groups, int(unit % cuts), cuts));
}

void multiply(const Job& job, const void* work, int thread, int threads) {
  const Lhs lhs(job);
  const Grid grid(job, lhs.kernel, threads);
  if (thread >= grid.panels * grid.rows) return;
  const int64_t row_blocks = (job.m + lhs.kernel.max_rows - 1) / lhs.kernel.max_rows;
  const Range mine = share(job.rhs.panels(), thread % grid.panels, grid.panels);
  const Range blocks = share(row_blocks, thread / grid.panels, grid.rows);
  alignas(64) float tile[2 * kMaxTile];
  for (int64_t p = mine.begin; p < mine.end; p += lhs.kernel.max_panels)
    for (int64_t b = blocks.begin; b < blocks.end; ++b)
      multiply_block(lhs, const_cast<void*>(work),
                     {b * lhs.kernel.max_rows, std::min<int64_t>((b + 1) * lhs.kernel.max_rows, job.m)},
                     {p, std::min<int64_t>(p + lhs.kernel.max_panels, mine.end)}, tile);
}

}  // namespace axiond::linear
