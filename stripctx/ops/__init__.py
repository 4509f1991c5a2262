"""Registration: importing this package defines every operator of `torch.ops.stripctx`."""

from stripctx.ops import encoding, height, labels, pyramid, strip, upsample

__all__ = ["encoding", "height", "labels", "pyramid", "strip", "upsample"]
