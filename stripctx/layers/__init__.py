"""The context modules as `nn.Module`s."""

from stripctx.layers.height import HeightAttention
from stripctx.layers.mixed import MixedPooling
from stripctx.layers.pyramid import PyramidPooling, PyramidPoolingConv
from stripctx.layers.strip import StripPooling

__all__ = [
    "HeightAttention",
    "MixedPooling",
    "PyramidPooling",
    "PyramidPoolingConv",
    "StripPooling",
]
