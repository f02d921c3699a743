// The loops that q4, q8 and bf16 share on AVX-512.
//
// A tile is up to 8 rows by 2 panels. It takes one step of k after the other (a group, where the weights have groups),
// and all rows take a step before the next one, while its weights are in the L1 cache. Weights are unpacked between the
// multiplications, into registers: shifts and shuffles fill issue slots that the dot products leave idle. Unpacking
// into a buffer first was never clearly faster.
//
// A class of weights W says what differs:
//   Lhs, Acc        type of an activation, and vector of sums; zero(), sum() and multiply_add() are Acc's arithmetic
//   kSums           sums that a tile has at least beside each other, kMaxChains of them at most for one result
//   kPanelHeader, kStepHeader, kBlockBytes    bytes before a panel's steps, before a step's blocks, of a block
//   kUnit           values of k that one instruction takes from each column
//   unit(i)         which unit of a block is read as the i-th: units of one row of 64 bytes follow each other
//   step(t)         values of k in a step
//   kOneStreamRows  up to which memory is slower than the arithmetic, although panels do not share activations
//   kAheadBytes     how far ahead one stream is prefetched
//   Step<P>         a step of P panels: where it lies, what its sums start from, its weights, and how sums go into dst
#pragma once

#include "avx512.h"

namespace axiond::linear {
namespace {

constexpr int kTileRows = 8, kTilePanels = 2;

// What belongs to a row and a step of k, and how far it is to the next row's.
template <class W>
struct Rows {
  const typename W::Lhs* lhs;
  const float* scale;  // this and sum are not for bf16 activations, which have none
  const int32_t* sum;
  float* dst;
  int64_t k, groups, dst_stride;

  AXIOND_INLINE void skip(int64_t rows) {
    lhs += rows * k;
    scale += rows * groups;
    sum += rows * groups;
    dst += rows * dst_stride;
  }
};

// Rows cut evenly into as few tiles as possible. The divisions are done here, once for all steps.
struct RowTiles {
  int64_t count, rows, larger;

  explicit RowTiles(int64_t total)
      : count((total + kTileRows - 1) / kTileRows), rows(total / count), larger(total % count) {}

  int64_t rows_of(int64_t tile) const { return rows + (tile < larger); }
};

// Where to prefetch: so far ahead in the stream of each of P panels that are read side by side that the latency of
// memory is hidden (8 KiB for each of two; half of it costs a fifth of the bandwidth). Beyond the end of a panel lies
// the panel that is read P panels later. The tiles of a step share its prefetches, which spreads them over its time.
class Ahead {
 public:
  Ahead(int64_t bytes, int64_t step_bytes, int64_t steps, int64_t next_panel)
      : steps_(std::min(std::max<int64_t>(bytes / step_bytes, 1), steps)),
        bytes_(steps_ * step_bytes),
        last_(steps - steps_),
        next_panel_(next_panel) {}

  void enter_step(int64_t step) { distance_ = bytes_ + (step < last_ ? 0 : next_panel_); }
  void enter_tile(int64_t tile, const RowTiles& tiles, int64_t size) {
    from_ = size * tile / tiles.count;
    to_ = size * (tile + 1) / tiles.count;
  }
  // Bytes from block k of the step to what should be prefetched now; 0 if nothing.
  AXIOND_INLINE int64_t distance(int64_t k) const { return k >= from_ && k < to_ ? distance_ : 0; }

 private:
  int64_t steps_, bytes_, last_, next_panel_;
  int64_t distance_ = 0, from_ = 0, to_ = 0;
};

// dst += the products of a step, which has `size` values of k, for R rows and P panels.
template <class W, int R, int P>
AXIOND_INLINE inline void multiply_step(const Rows<W>& rows, const typename W::template Step<P>& step, int64_t size,
                                        const Ahead& ahead) {
  // A dot product takes 4 to 6 cycles, and 2 start in each: so many sums must not wait for each other.
  constexpr int kChains = std::max(1, std::min(W::kMaxChains, W::kSums / (R * P))), kUnits = kBlockK / W::kUnit;
  typename W::Acc acc[R][P][kChains];
  each<R>(AXIOND_EACH(r) {
    each<P>(AXIOND_EACH(p) {
      acc[r][p][0] = step.start(p, rows.sum + r * rows.groups);
      each<kChains - 1>(AXIOND_EACH(c) { acc[r][p][c + 1] = W::zero(); });
    });
  });
  const uint8_t* block[P];
  each<P>(AXIOND_EACH(p) { block[p] = step.block[p]; });
  const typename W::Lhs* lhs = rows.lhs;
  for (int64_t k = 0; k < size; k += kBlockK, lhs += kBlockK) {
    const int64_t distance = ahead.distance(k);
    each<kUnits>(AXIOND_EACH(i) {
      constexpr int kUnit = W::unit(i);
      __m512i weights[P];
      each<P>(AXIOND_EACH(p) {
        if (i * kRowBytes < W::kBlockBytes) _mm_prefetch(block[p] + i * kRowBytes + distance, _MM_HINT_T0);
        weights[p] = step.weights(block[p], p, kUnit);
      });
      each<R>(AXIOND_EACH(r) {
        const __m512i x = broadcast4(lhs + r * rows.k + W::kUnit * kUnit);
        each<P>(AXIOND_EACH(p) { W::multiply_add(acc[r][p][i % kChains], weights[p], x); });
      });
    });
    each<P>(AXIOND_EACH(p) { block[p] += W::kBlockBytes; });
  }
  each<R>(AXIOND_EACH(r) {
    const float* scale = rows.scale + r * rows.groups;
    each<P>(AXIOND_EACH(p) {
      each<kChains - 1>(AXIOND_EACH(c) { acc[r][p][0] = W::sum(acc[r][p][0], acc[r][p][c + 1]); });
      float* dst = rows.dst + r * rows.dst_stride + p * kColumns;
      _mm512_store_ps(dst, step.add(_mm512_load_ps(dst), acc[r][p][0], p, scale));
    });
  });
}

template <class W, int P>
void multiply_panels(const Tile& t) {
  const int64_t step_k = W::step(t), steps = (t.k + step_k - 1) / step_k;
  const int64_t step_bytes = W::kStepHeader + step_k / kBlockK * W::kBlockBytes;
  const RowTiles tiles(t.rows);
  Ahead ahead(P == 1 ? W::kAheadBytes : 8192, step_bytes, steps, (P - 1) * t.panel_bytes);
  for (int64_t row = 0; row < t.rows; ++row) std::fill_n(t.dst + row * t.dst_stride, P * kColumns, 0.0f);
  for (int64_t s = 0; s < steps; ++s) {
    const typename W::template Step<P> step(t, W::kPanelHeader + s * step_bytes);
    const int64_t size = std::min(step_k, t.k - s * step_k);
    Rows<W> rows{static_cast<const typename W::Lhs*>(t.lhs) + s * step_k, t.lhs_scale + s, t.lhs_sum + s, t.dst,
                 t.k, steps, t.dst_stride};
    ahead.enter_step(s);
    for (int64_t tile = 0; tile < tiles.count; rows.skip(tiles.rows_of(tile++))) {
      ahead.enter_tile(tile, tiles, size);
      switch (tiles.rows_of(tile)) {
        case 1: multiply_step<W, 1, P>(rows, step, size, ahead); break;
        case 2: multiply_step<W, 2, P>(rows, step, size, ahead); break;
        case 3: multiply_step<W, 3, P>(rows, step, size, ahead); break;
        case 4: multiply_step<W, 4, P>(rows, step, size, ahead); break;
        case 5: multiply_step<W, 5, P>(rows, step, size, ahead); break;
        case 6: multiply_step<W, 6, P>(rows, step, size, ahead); break;
        case 7: multiply_step<W, 7, P>(rows, step, size, ahead); break;
        default: multiply_step<W, 8, P>(rows, step, size, ahead);
      }
    }
  }
}

inline Tile from_panel(const Tile& t, int64_t panel) {
  Tile rest = t;
  rest.rhs += panel * t.panel_bytes;
  rest.dst += panel * kColumns;
  return rest;
}

// Few rows read one panel after the other: a single stream comes out of memory fastest.
template <class W>
void multiply_tile(const Tile& t) {
  int64_t panel = 0;
  if (t.rows > W::kOneStreamRows)
    for (; panel + kTilePanels <= t.panels; panel += kTilePanels)
      multiply_panels<W, kTilePanels>(from_panel(t, panel));
  for (; panel < t.panels; ++panel) multiply_panels<W, 1>(from_panel(t, panel));
}

}  // namespace
}  // namespace axiond::linear
