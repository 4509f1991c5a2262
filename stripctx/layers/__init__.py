"""The context layers, as `nn.Module`s."""

from stripctx.layers.encoding import ContextEncoding, EncodingLayer
from stripctx.layers.height import HeightAttention
from stripctx.layers.pyramid import PyramidPooling, PyramidPoolingConv
from stripctx.layers.strip import MixedPooling, StripPooling

__all__ = [
    "ContextEncoding",
    "EncodingLayer",
    "HeightAttention",
    "MixedPooling",
    "PyramidPooling",
    "PyramidPoolingConv",
    "StripPooling",
]
