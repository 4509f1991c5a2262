"""The context modules as `nn.Module`s."""

from stripctx.layers.strip import StripPooling

__all__ = ["StripPooling"]
