"""The context modules as `nn.Module`s."""

from stripctx.layers.encoding import ContextEncoding, EncodingLayer
from stripctx.layers.strip import StripPooling

__all__ = ["ContextEncoding", "EncodingLayer", "StripPooling"]
