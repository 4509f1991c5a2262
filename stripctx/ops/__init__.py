"""Registration: importing this package defines every operator of `torch.ops.stripctx`."""

from stripctx.ops import encoding, height, pyramid, strip, strip_conv, upsample

__all__ = ["encoding", "height", "pyramid", "strip", "strip_conv", "upsample"]
