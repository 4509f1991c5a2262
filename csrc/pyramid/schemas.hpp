// The schemas of the pyramid family's operators. csrc/bind defines the operators from this text
// where Python does not, and stripctx/ops/schemas.py parses it: no default values, no comments
// inside.
#pragma once

namespace stripctx {

constexpr const char* kSchemas[] = {
    "pyramid_pool(Tensor x, SymInt[] bins) -> Tensor[]",
    "pyramid_pool_backward(Tensor[] grads, SymInt height, SymInt width, bool channels_last)"
    " -> Tensor",
    "pyramid_max_pool(Tensor x, SymInt[] bins) -> Tensor[]",
    "pyramid_max_pool_backward(Tensor[] grads, Tensor[] indices, SymInt height, SymInt width,"
    " bool channels_last) -> Tensor",
};

}  // namespace stripctx
