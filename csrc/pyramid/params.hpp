// Pyramid pooling (PSPNet, Zhao et al., CVPR 2017, section 3.2; with bins (rows, 1), the width-wise
// pooling of HANet, Choi et al., CVPR 2020): each operator's inputs and outputs, the same on every
// device. Shapes: x, grad_x (N, C, H, W); level k of a pyramid (N, C, bins_h, bins_w), one element
// per bin.
#pragma once

#include "core/bins.hpp"
#include "core/levels.hpp"
#include "core/view.hpp"
#include "cpu/work.hpp"
#include "cuda/launch.hpp"

namespace stripctx {

// Partial results for a second stage: `count` for each element of each level, stored level after
// level. A count of 0 means that a single stage computes the result.
struct PyramidPartials {
  int64_t count = 0;
  void* data = nullptr;
};

// levels[k][i, j] = mean of x over the window of bin (i, j).
struct PyramidPool {
  View x;
  PooledLevels levels;
  PyramidPartials partials{};
};

// grad_x[h, w] = sum of grads[k][i, j] / (number of positions in the bin), over the bins that
// contain (h, w).
struct PyramidPoolBackward {
  PooledLevels grads;
  View grad_x;
};

// The maximum of each window and its index h * W + w (int64): the first of equal maxima; if there
// are NaNs, the last NaN.
struct PyramidMaxPool {
  View x;
  PooledLevels levels, indices;
  PyramidPartials partials{};
};

// grad_x[h, w] = sum of grads[k][i, j] over the bins that contain (h, w) and whose index is h * W +
// w. An index outside its bin's window contributes nothing.
struct PyramidMaxPoolBackward {
  PooledLevels grads, indices;
  View grad_x;
};

}  // namespace stripctx

namespace stripctx::cpu {

inline int64_t partials(const PyramidPool&) {
  return 0;
}
inline int64_t partials(const PyramidMaxPool&) {
  return 0;
}
Work work(const PyramidPool& op);
Work work(const PyramidPoolBackward& op);
Work work(const PyramidMaxPool& op);
Work work(const PyramidMaxPoolBackward& op);
void run(const PyramidPool& op, int64_t begin, int64_t end);
void run(const PyramidPoolBackward& op, int64_t begin, int64_t end);
void run(const PyramidMaxPool& op, int64_t begin, int64_t end);
void run(const PyramidMaxPoolBackward& op, int64_t begin, int64_t end);

}  // namespace stripctx::cpu

namespace stripctx::cuda {

int64_t partials(const PyramidPool& op);
int64_t partials(const PyramidMaxPool& op);
void launch(const PyramidPool& op, Stream stream);
void launch(const PyramidPoolBackward& op, Stream stream);
void launch(const PyramidMaxPool& op, Stream stream);
void launch(const PyramidMaxPoolBackward& op, Stream stream);

}  // namespace stripctx::cuda
