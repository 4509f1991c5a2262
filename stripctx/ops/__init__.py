"""Registration: importing this package defines every operator of `torch.ops.stripctx`."""

from stripctx.ops import (
    encoding,
    height,
    labels,
    labels_losses,
    pyramid,
    strip,
    upsample,
    upsample_conv,
    upsample_taps,
)
from stripctx.ops.flops import count_flops

count_flops()

__all__ = [
    "encoding",
    "height",
    "labels",
    "labels_losses",
    "pyramid",
    "strip",
    "upsample",
    "upsample_conv",
    "upsample_taps",
]
