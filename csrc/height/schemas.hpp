// The schemas of the height family's operators. csrc/bind defines the operators from this text
// where Python does not, and stripctx/ops/schemas.py parses it: no default values, no comments
// inside.
#pragma once

namespace stripctx {

constexpr const char* kSchemas[] = {
    "row_gate(Tensor x, Tensor logits) -> Tensor",
    "row_gate_backward(Tensor grad, Tensor x, Tensor logits) -> (Tensor, Tensor)",
};

}  // namespace stripctx
