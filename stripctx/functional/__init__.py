"""The public functions. Maps are (N, C, H, W) in float64, float32, float16 or bfloat16. Contiguous
and channels_last maps run natively, and results keep the memory format of the input.

All functions except label maps are twice differentiable, and all are bit-reproducible: the same
input gives the same bits. Sums use float32 (float64 for float64) and are rounded once. Invalid
arguments raise ValueError. Forward-mode differentiation and `torch.func.grad` raise
NotImplementedError.
"""

import stripctx.ops  # noqa: F401  (defines the operators)
from stripctx.functional.encoding import channel_gate, encode
from stripctx.functional.height import row_gate
from stripctx.functional.labels import (
    upsample_argmax,
    upsample_binary_cross_entropy,
    upsample_cross_entropy,
    upsample_dice,
    upsample_softmax_max,
)
from stripctx.functional.pyramid import pyramid_pool, row_pool
from stripctx.functional.strip import sigmoid_gate, strip_add_relu, strip_gate, strip_pool
from stripctx.functional.upsample import pyramid_add, pyramid_add_relu, pyramid_concat, pyramid_conv

__all__ = [
    "channel_gate",
    "encode",
    "pyramid_add",
    "pyramid_add_relu",
    "pyramid_concat",
    "pyramid_conv",
    "pyramid_pool",
    "row_gate",
    "row_pool",
    "sigmoid_gate",
    "strip_add_relu",
    "strip_gate",
    "strip_pool",
    "upsample_argmax",
    "upsample_binary_cross_entropy",
    "upsample_cross_entropy",
    "upsample_dice",
    "upsample_softmax_max",
]
