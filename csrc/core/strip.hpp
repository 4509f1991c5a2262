// The strip family (SPNet, Hou et al. 2020, eq. 1 to 4): what each operator reads and writes.
// Shapes: x, out, grad (N, C, H, W); rows (N, C, H, 1), means over W; cols (N, C, 1, W), means over
// H.
#pragma once

#include "core/view.hpp"

namespace stripctx {

// rows = mean over W of x, cols = mean over H of x.
struct StripPool {
  View x, rows, cols;
};

// grad_x = grad_rows / W + grad_cols / H.
struct StripPoolBackward {
  View grad_rows, grad_cols, grad_x;
};

// out = relu(rows + cols).
struct StripAddRelu {
  View rows, cols, out;
};

// With g = grad where not (rows + cols <= 0), else 0: grad_rows = sum over W, grad_cols = sum over
// H.
struct StripAddReluBackward {
  View grad, rows, cols, grad_rows, grad_cols;
};

// out = x * sigmoid(logits + bias[c]); bias is (1, C, 1, 1).
struct SigmoidGate {
  View x, logits, bias, out;
};

// With s = sigmoid(logits + bias): grad_x = grad * s, grad_logits = grad * x * s * (1 - s); row p
// of partials (P, C) holds a part of the sum of grad_logits over N, H and W, in the accumulation
// type.
struct SigmoidGateBackward {
  View grad, x, logits, bias, grad_x, grad_logits, partials;
};

}  // namespace stripctx
