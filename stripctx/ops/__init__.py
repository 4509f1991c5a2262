"""Registration: importing this package defines every operator of `torch.ops.stripctx`."""

from stripctx.ops import encoding, pyramid, strip

__all__ = ["encoding", "pyramid", "strip"]
from stripctx.ops import height, pyramid, strip, upsample

__all__ = ["height", "pyramid", "strip", "upsample"]
