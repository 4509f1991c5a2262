// Interpolation of small maps, "levels", to the size of a large one (PSPNet's pyramid, Zhao et al.,
// CVPR 2017; SPNet's mixed pooling; the convolution over a pyramid that is never built): what each
// operator reads and writes.
// Shapes: x, out, grad (N, C, H, W); a level (N, C, h, w) for each of the kernel's taps.
#pragma once

#include "core/interpolation.hpp"
#include "core/levels.hpp"
#include "core/view.hpp"
#include "cpu/work.hpp"
#include "cuda/launch.hpp"

namespace stripctx {

// How a level meets the map: interpolated to `size`, then read under a kernel's taps, `offset` away
// and 0 outside. Channel c of tap (dy, dx) is channel (dy * kernel[1] + dx) * C + c of the level.
// Plain interpolation is a kernel of one tap.
struct Taps {
  int64_t size[2];
  int64_t kernel[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};

  STRIPCTX_HOST_DEVICE int64_t offset(int axis, int64_t tap) const {
    return tap * dilation[axis] - padding[axis];
  }

  // The level's cells along `axis`: 0 rows, 1 columns.
  template <class A>
  STRIPCTX_HOST_DEVICE Axis<A> axis(const Level& level, int axis) const {
    return Axis<A>(level.size[2 + axis], size[axis], level.mode, level.ratio[axis]);
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
struct PyramidAddBackward {
  View grad, out, grad_x;
  Levels levels;
  Taps taps;
  bool channels_last;

  STRIPCTX_HOST_DEVICE bool masked() const { return out.data != nullptr; }
};

}  // namespace stripctx

namespace stripctx::cpu {

Work work(const PyramidAdd& op);
Work work(const PyramidAddBackward& op);
void run(const PyramidAdd& op, int64_t begin, int64_t end);
void run(const PyramidAddBackward& op, int64_t begin, int64_t end);

}  // namespace stripctx::cpu

namespace stripctx::cuda {

void launch(const PyramidAdd& op, Stream stream);
void launch(const PyramidAddBackward& op, Stream stream);

}  // namespace stripctx::cuda
