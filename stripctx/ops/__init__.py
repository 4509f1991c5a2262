"""Registration: importing this package defines every operator of `torch.ops.stripctx`."""

from stripctx.ops import strip

__all__ = ["strip"]
