// The schemas of the encoding family's operators. csrc/bind defines the operators from this text
// where Python does not, and stripctx/ops/schemas.py parses it: no default values, no comments
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
