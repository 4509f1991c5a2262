// The gradient of one cell by itself, for what the kernels that share work between cells do not
// support. interpolate.cuh is its counterpart.
#pragma once

#include "cuda/device.cuh"
#include "upsample/weights.cuh"

namespace stripctx::cuda {

// A lane's part of the gradient of cell (i, j) of a level and tap: the weighted sum over the
// positions that read it, every `lanes`-th column from the `lane`-th on. `value(h, w)` is the
// gradient of the output.
template <class A, class Value>
__device__ A gather_cell(const PyramidAddBackward& op, const Level& level, int64_t tap, int64_t i,
                         int64_t j, int lane, int lanes, const Value& value) {
  const int64_t dy = tap / op.taps.kernel[1];
  const int64_t down = op.taps.offset(0, dy);
  const int64_t across = op.taps.offset(1, tap - dy * op.taps.kernel[1]);
  const Axis<A> rows = op.taps.template axis<A>(level, 0);
  const Axis<A> columns = op.taps.template axis<A>(level, 1);
  const int64_t top = max(rows.begin(i) - down, int64_t{0});
  const int64_t bottom = min(rows.end(i) - down, op.grad.size[2]);
  const int64_t left = max(columns.begin(j) - across, int64_t{0});
  const int64_t right = min(columns.end(j) - across, op.grad.size[3]);
  A sum = 0;
  for (int64_t w = left + lane; w < right; w += lanes) {
    A column = 0;
    for (int64_t h = top; h < bottom; ++h) {
      column = add_weighted(column, rows.weight(h + down, i), value(h, w));
    }
    sum = add_weighted(sum, columns.weight(w + across, j), column);
  }
  return sum;
}

}  // namespace stripctx::cuda
