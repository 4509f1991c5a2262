"""Drop-in context layers for scene parsing, with fused C++ and CUDA kernels."""

import stripctx.ops
from stripctx import extension

extension.load()

from stripctx.layers import StripPooling  # noqa: E402

__version__ = "0.1.0"
__all__ = ["StripPooling"]
