"""Context layers, decoders and losses for segmentation, with fused C++ and CUDA kernels."""

from stripctx import extension

extension.load()  # before stripctx.ops, which skips operators that a library defines

from stripctx import export, functional, layers, losses, models  # noqa: E402
from stripctx import ops as ops  # noqa: E402
from stripctx.fusion import fuse, fusing, unfuse  # noqa: E402
from stripctx.layers import *  # noqa: E402, F403

__version__ = "0.2.0"
__all__ = ["export", "functional", "fuse", "fusing", "losses", "models", "unfuse"]
__all__ += layers.__all__
