"""Registration: importing this package defines every operator of `torch.ops.stripctx`."""

from stripctx.ops import encoding, height, labels, pyramid, strip, upsample, upsample_conv
from stripctx.ops.flops import count_flops

count_flops()

__all__ = ["encoding", "height", "labels", "pyramid", "strip", "upsample", "upsample_conv"]
