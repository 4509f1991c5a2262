// The height family's operators, in the dispatcher's language: the text that csrc/bind defines them
// by without Python, and that stripctx/ops/schemas.py reads. No default values, no comments inside.
#pragma once

namespace stripctx {

constexpr const char* kSchemas[] = {
    "row_gate(Tensor x, Tensor logits) -> Tensor",
    "row_gate_backward(Tensor grad, Tensor x, Tensor logits) -> (Tensor, Tensor)",
};

}  // namespace stripctx
