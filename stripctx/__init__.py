"""Drop-in context layers for scene parsing, with fused C++ and CUDA kernels."""

from stripctx import extension
from stripctx import ops as ops

extension.load()

from stripctx.layers import (  # noqa: E402
    ContextEncoding,
    EncodingLayer,
    HeightAttention,
    MixedPooling,
    PyramidPooling,
    PyramidPoolingConv,
    StripPooling,
)
from stripctx.replace import fuse, unfuse  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "ContextEncoding",
    "EncodingLayer",
    "HeightAttention",
    "MixedPooling",
    "PyramidPooling",
    "PyramidPoolingConv",
    "StripPooling",
    "fuse",
    "unfuse",
]
