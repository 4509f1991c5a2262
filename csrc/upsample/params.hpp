// Interpolation of small maps, "levels", to the size of a large one (PSPNet's pyramid, Zhao et al.,
// CVPR 2017; SPNet's mixed pooling; the convolution over a pyramid that is never built): each
// operator's inputs and outputs.
//
// Shapes: x, out, grad (N, C, H, W); a level (N, taps * C, h, w), C channels for each tap of the
// kernel.
#pragma once

#include "core/interpolation.hpp"
#include "core/levels.hpp"
#include "core/view.hpp"
#include "cpu/work.hpp"
#include "cuda/launch.hpp"

namespace stripctx {

// How a level contributes to the map. It is interpolated to `size`; tap (dy, dx) of the kernel
// reads the interpolated map offset() positions away, and 0 outside it. The tap's channel c is
// channel (dy * kernel[1] + dx) * C + c of the level. Plain interpolation is a kernel of one tap.
struct Taps {
  int64_t size[2];
  int64_t kernel[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};

  STRIPCTX_HOST_DEVICE int64_t offset(int axis, int64_t tap) const {
    return tap * dilation[axis] - padding[axis];
  }

  // The level's interpolation along `axis`: 0 for H, 1 for W.
  template <class A>
  STRIPCTX_HOST_DEVICE Axis<A> axis(const Level& level, int axis) const {
    return Axis<A>(level.size[2 + axis], size[axis], level.mode, level.ratio[axis]);
  }
};

// out = x + sum of the levels under their taps, then relu if `rectify`. Without data, x counts as
// 0.
struct PyramidAdd {
  View x, out;
  Levels levels;
  Taps taps;
  bool rectify;
  bool channels_last;  // all views: the fastest dimension is C, else W
};

// The adjoint: every level's gradient from grad. If `out` has data, the gradient of the relu comes
// first: grad_x = 0 where out <= 0 and grad elsewhere is written and takes the place of grad.
struct PyramidAddBackward {
  View grad, out, grad_x;
  Levels levels;
  Taps taps;
  bool channels_last;
  View partials{};  // where the kernels keep parts of sums: partials(op) elements that sums run in

  STRIPCTX_HOST_DEVICE bool masked() const { return out.data != nullptr; }
};

}  // namespace stripctx

namespace stripctx::cpu {

Work work(const PyramidAdd& op);
Work work(const PyramidAddBackward& op);
inline int64_t partials(const PyramidAddBackward&) {
  return 0;
}
void run(const PyramidAdd& op, int64_t begin, int64_t end);
void run(const PyramidAddBackward& op, int64_t begin, int64_t end);

}  // namespace stripctx::cpu

namespace stripctx::cuda {

void launch(const PyramidAdd& op, Stream stream);
void launch(const PyramidAddBackward& op, Stream stream);
int64_t partials(const PyramidAddBackward& op);

}  // namespace stripctx::cuda
