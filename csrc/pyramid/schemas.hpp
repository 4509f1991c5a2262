// The pyramid family's operators, in the dispatcher's language: the text that csrc/bind defines
// them by without Python, and that stripctx/ops/schemas.py reads. No default values, no comments
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
