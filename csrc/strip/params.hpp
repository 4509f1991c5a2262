// The strip family (SPNet, Hou et al., CVPR 2020, eq. 1 to 4): each operator's inputs and outputs,
// and the two kernel forms, reduction and expansion, that implement them on every device. Shapes:
// x, out, grad (N, C, H, W); rows (N, C, H, 1), means over W; cols (N, C, 1, W), means over H.
#pragma once

#include "core/view.hpp"
#include "cpu/work.hpp"
#include "cuda/launch.hpp"

namespace stripctx {

// Partial row and column sums for a second stage, in the accumulation type, each laid out like its
// result. A count of 0 means that a single stage computes the result.
struct StripPartials {
  int64_t row_parts = 0, col_parts = 0;
  void *rows = nullptr, *cols = nullptr;
};

// rows = mean over W of x, cols = mean over H of x.
struct StripPool {
  View x, rows, cols;
  StripPartials partials{};
};

// grad_x = grad_rows / W + grad_cols / H.
struct StripPoolBackward {
  View grad_rows, grad_cols, grad_x;
};

// out = relu(rows + cols).
struct StripAddRelu {
  View rows, cols, out;
};

// With g = 0 where rows + cols <= 0 and grad elsewhere: grad_rows = sum of g over W, grad_cols =
// sum of g over H.
struct StripAddReluBackward {
  View grad, rows, cols, grad_rows, grad_cols;
  StripPartials partials{};
};

// out = x * sigmoid(logits + bias[c]); bias is (1, C, 1, 1).
struct SigmoidGate {
  View x, logits, bias, out;
};

// With s = sigmoid(logits + bias): grad_x = grad * s, grad_logits = grad * x * s * (1 - s). Row p
// of partials (P, C) holds a partial sum of grad_logits over N, H and W, in the accumulation type.
struct SigmoidGateBackward {
  View grad, x, logits, bias, grad_x, grad_logits, partials;
};

// rows[h] = sum over w of value(h, w) / row_divisor, and cols[w] likewise over h. The value is the
// map or, with a mask, 0 where mask_rows + mask_cols <= 0 and the map elsewhere.
struct StripReduction {
  View map, mask_rows, mask_cols, rows, cols;
  double row_divisor, col_divisor;
  StripPartials partials;

  STRIPCTX_HOST_DEVICE bool channels_last() const {
    return map.channels_last() && rows.stride[1] == 1;
  }
};

inline StripReduction reduction(const StripPool& op) {
  const double H = static_cast<double>(op.x.size[2]), W = static_cast<double>(op.x.size[3]);
  return {op.x, {}, {}, op.rows, op.cols, W, H, op.partials};
}

inline StripReduction reduction(const StripAddReluBackward& op) {
  return {op.grad, op.rows, op.cols, op.grad_rows, op.grad_cols, 1, 1, op.partials};
}

// out = row_factor * rows + col_factor * cols, then relu if `rectify`.
struct StripExpansion {
  View rows, cols, out;
  double row_factor, col_factor;
  bool rectify;
};

inline StripExpansion expansion(const StripPoolBackward& op) {
  const double H = static_cast<double>(op.grad_x.size[2]);
  const double W = static_cast<double>(op.grad_x.size[3]);
  return {op.grad_rows, op.grad_cols, op.grad_x, 1 / W, 1 / H, false};
}

inline StripExpansion expansion(const StripAddRelu& op) {
  return {op.rows, op.cols, op.out, 1, 1, true};
}

}  // namespace stripctx

namespace stripctx::cpu {

inline StripPartials partials(const StripPool&) {
  return {};
}
inline StripPartials partials(const StripAddReluBackward&) {
  return {};
}
int64_t partials(const SigmoidGateBackward& op);
Work work(const StripPool& op);
Work work(const StripPoolBackward& op);
Work work(const StripAddRelu& op);
Work work(const StripAddReluBackward& op);
Work work(const SigmoidGate& op);
Work work(const SigmoidGateBackward& op);
void run(const StripPool& op, int64_t begin, int64_t end);
void run(const StripPoolBackward& op, int64_t begin, int64_t end);
void run(const StripAddRelu& op, int64_t begin, int64_t end);
void run(const StripAddReluBackward& op, int64_t begin, int64_t end);
void run(const SigmoidGate& op, int64_t begin, int64_t end);
void run(const SigmoidGateBackward& op, int64_t begin, int64_t end);

}  // namespace stripctx::cpu

namespace stripctx::cuda {

StripPartials partials(const StripPool& op);
StripPartials partials(const StripAddReluBackward& op);
int64_t partials(const SigmoidGateBackward& op);
void launch(const StripPool& op, Stream stream);
void launch(const StripPoolBackward& op, Stream stream);
void launch(const StripAddRelu& op, Stream stream);
void launch(const StripAddReluBackward& op, Stream stream);
void launch(const SigmoidGate& op, Stream stream);
void launch(const SigmoidGateBackward& op, Stream stream);

}  // namespace stripctx::cuda
