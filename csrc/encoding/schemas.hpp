// The encoding family's operators, in the dispatcher's language: the text that csrc/bind defines
// them by without Python, and that stripctx/ops/schemas.py reads. No default values, no comments
// inside.
#pragma once

namespace stripctx {

constexpr const char* kSchemas[] = {
    "encode(Tensor x, Tensor codewords, Tensor scale, bool allow_tf32) -> Tensor",
    "encode_backward(Tensor grad, Tensor x, Tensor codewords, Tensor scale, bool allow_tf32)"
    " -> (Tensor, Tensor, Tensor)",
    "channel_gate(Tensor x, Tensor gate) -> Tensor",
    "channel_gate_backward(Tensor grad, Tensor x, Tensor gate) -> (Tensor, Tensor)",
};

}  // namespace stripctx
