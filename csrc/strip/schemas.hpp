// The schemas of the strip family's operators. csrc/bind defines the operators from this text where
// Python does not, and stripctx/ops/schemas.py parses it: no default values, no comments inside.
#pragma once

namespace stripctx {

constexpr const char* kSchemas[] = {
    "strip_pool(Tensor x) -> (Tensor rows, Tensor cols)",
    "strip_pool_backward(Tensor grad_rows, Tensor grad_cols, bool channels_last) -> Tensor",
    "strip_add_relu(Tensor rows, Tensor cols) -> Tensor",
    "strip_add_relu_backward(Tensor grad, Tensor rows, Tensor cols) -> (Tensor, Tensor)",
    "sigmoid_gate(Tensor x, Tensor logits, Tensor bias) -> Tensor",
    "sigmoid_gate_backward(Tensor grad, Tensor x, Tensor logits, Tensor bias)"
    " -> (Tensor, Tensor, Tensor)",
    "strip_conv(Tensor rows, Tensor cols, Tensor weight) -> Tensor",
};

}  // namespace stripctx
