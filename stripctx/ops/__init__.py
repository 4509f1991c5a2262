"""Registration: importing this package defines every operator of `torch.ops.stripctx`."""

from stripctx.ops import encoding, height, labels, pyramid, strip, upsample, upsample_conv
from stripctx.ops import flops as flops  # isort: skip  (which knows them all)

__all__ = ["encoding", "height", "labels", "pyramid", "strip", "upsample", "upsample_conv"]
