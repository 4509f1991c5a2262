// Linear interpolation of small maps, "levels", to the size of a large one (PSPNet's pyramid, Zhao
// et al., CVPR 2017; SPNet's mixed pooling; the convolution over a pyramid that is never built):
// where a position reads, and what each operator reads and writes.
// Shapes: x, out, grad (N, C, H, W); a level (N, C, h, w) for each of the kernel's taps.
#pragma once

#include "core/levels.hpp"
#include "core/view.hpp"
#include "cpu/work.hpp"
#include "cuda/launch.hpp"

namespace stripctx {

// The two cells that a position lies between, and their weights.
template <class A>
struct Sample {
  int64_t first, second;
  A first_weight, second_weight;
};

// `cells` spread over `extent` positions, as torch.nn.functional.interpolate spreads them, with its
// index formula in the type A that sums run in.
template <class A>
struct Axis {
  int64_t cells, extent;
  bool align_corners;
  A scale;

  STRIPCTX_HOST_DEVICE Axis(int64_t cells, int64_t extent, bool align_corners)
      : cells(cells), extent(extent), align_corners(align_corners) {
    if (align_corners) {
      scale = extent > 1 ? A(cells - 1) / A(extent - 1) : A(0);
    } else {
      scale = A(cells) / A(extent);
    }
  }

  STRIPCTX_HOST_DEVICE Sample<A> at(int64_t position) const {
    if (cells == extent) return {position, position, 1, 0};
    A source = align_corners ? scale * A(position) : scale * (A(position) + A(0.5)) - A(0.5);
    if (source < 0) source = 0;
    const int64_t floor = static_cast<int64_t>(source);
    const int64_t first = floor < cells - 1 ? floor : cells - 1;
    const int64_t second = first < cells - 1 ? first + 1 : first;
    A fraction = source - A(first);
    if (fraction > 1) fraction = 1;
    return {first, second, 1 - fraction, fraction};
  }

  // The weight of `cell` at `position`.
  STRIPCTX_HOST_DEVICE A weight(int64_t position, int64_t cell) const {
    const Sample<A> sample = at(position);
    return (sample.first == cell ? sample.first_weight : A(0)) +
           (sample.second == cell ? sample.second_weight : A(0));
  }

  // The first position that reads `cell` or one after it; `extent` if none does. Positions read
  // cells in ascending order, so those that read `cell` are [begin(cell), end(cell)).
  STRIPCTX_HOST_DEVICE int64_t begin(int64_t cell) const {
    return search([&](int64_t position) { return at(position).second >= cell; });
  }
  STRIPCTX_HOST_DEVICE int64_t end(int64_t cell) const {
    return search([&](int64_t position) { return at(position).first > cell; });
  }

 private:
  template <class Reached>
  STRIPCTX_HOST_DEVICE int64_t search(const Reached& reached) const {
    int64_t low = 0, high = extent;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (reached(middle)) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }
};

// How a level meets the map: interpolated to `size`, then read under a kernel's taps, `offset` away
// and 0 outside. Channel c of tap (dy, dx) is channel (dy * kernel[1] + dx) * C + c of the level.
// Plain interpolation is a kernel of one tap.
struct Taps {
  int64_t size[2];
  bool align_corners;
  int64_t kernel[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};

  STRIPCTX_HOST_DEVICE int64_t offset(int axis, int64_t tap) const {
    return tap * dilation[axis] - padding[axis];
  }

  // The level's cells along `axis`: 0 rows, 1 columns.
  template <class A>
  STRIPCTX_HOST_DEVICE Axis<A> axis(const View& level, int axis) const {
    return Axis<A>(level.size[2 + axis], size[axis], align_corners);
  }
};

// out = x + sum of the levels under their taps, rectified if so asked; no x (no data) counts as 0.
struct PyramidAdd {
  View x, out;
  Levels levels;
  Taps taps;
  bool rectify;
  bool channels_last;  // all views: the fastest dimension is C, else W
};

// Its adjoint: every level's gradient from that of the output. With an output to mask by, grad_x =
// grad where not (out <= 0), else 0, is written first and stands for the gradient.
struct PyramidReduce {
  View grad, out, grad_x;
  Levels levels;
  Taps taps;
  bool channels_last;

  STRIPCTX_HOST_DEVICE bool masked() const { return out.data != nullptr; }
};

}  // namespace stripctx

namespace stripctx::cpu {

Work work(const PyramidAdd& op);
Work work(const PyramidReduce& op);
void run(const PyramidAdd& op, int64_t begin, int64_t end);
void run(const PyramidReduce& op, int64_t begin, int64_t end);

}  // namespace stripctx::cpu

namespace stripctx::cuda {

void launch(const PyramidAdd& op, Stream stream);
void launch(const PyramidReduce& op, Stream stream);

}  // namespace stripctx::cuda
