// The height family (HANet, Choi et al., CVPR 2020, eq. 2): each operator's inputs and outputs.
// Shapes: x, out, grad (N, C, H, W); logits (N, C, L), in a View (N, C, L, 1).
#pragma once

#include "core/view.hpp"
#include "cpu/work.hpp"
#include "cuda/launch.hpp"

namespace stripctx {

// out = x * rows[h], where rows is sigmoid(logits) interpolated linearly from L to H,
// align_corners=False.
struct RowGate {
  View x, logits, out;
  bool channels_last;  // x and out: the fastest dimension is C, else W
};

// grad_x = grad * rows[h]. grad_logits = s(1 - s) * the adjoint of the interpolation applied to the
// sums over W of grad * x. Kernels of two stages keep those sums in `sums`, (N, C, H), dense, in
// the accumulation type.
struct RowGateBackward {
  View grad, x, logits, grad_x, grad_logits;
  bool channels_last;
  void* sums = nullptr;
};

}  // namespace stripctx

namespace stripctx::cpu {

inline int64_t partials(const RowGateBackward&) {
  return 0;
}
Work work(const RowGate& op);
Work work(const RowGateBackward& op);
void run(const RowGate& op, int64_t begin, int64_t end);
void run(const RowGateBackward& op, int64_t begin, int64_t end);

}  // namespace stripctx::cpu

namespace stripctx::cuda {

int64_t partials(const RowGateBackward& op);
void launch(const RowGate& op, Stream stream);
void launch(const RowGateBackward& op, Stream stream);

}  // namespace stripctx::cuda
