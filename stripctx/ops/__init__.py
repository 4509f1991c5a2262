"""Registration: importing this package defines every operator of `torch.ops.stripctx`."""

from stripctx.ops import pyramid, strip

__all__ = ["pyramid", "strip"]
from stripctx.ops import height, strip, upsample

__all__ = ["height", "strip", "upsample"]
