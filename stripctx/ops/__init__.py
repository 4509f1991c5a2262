"""Registration: importing this package defines every operator of `torch.ops.stripctx`."""

from stripctx.ops import encoding, pyramid, strip

__all__ = ["encoding", "pyramid", "strip"]
