"""Decode heads for mmseg, registered by one call:

    import stripctx.mmseg
    stripctx.mmseg.register()

Configurations can then use `decode_head=dict(type="StripPoolingHead", ...)` with the options of
mmseg's own heads: in_channels, in_index, channels, num_classes, norm_cfg, dropout_ratio,
align_corners, loss_decode. mmseg's own heads are replaced by `fuse`: the context modules of PSPHead
and EncHead, and the convolutions of UPerHead and SegformerHead.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from stripctx.layers import ContextEncoding, MixedPooling, PyramidPoolingConv
from stripctx.models.heads import conv_unit
from stripctx.models.network import NormLayer

__all__ = ["norm_layer", "register"]

HEADS = ("StripPoolingHead", "PyramidPoolingHead", "ContextEncodingHead")


def norm_layer(norm_cfg: Mapping[str, Any]) -> NormLayer:
    """Converts mmseg's `norm_cfg` to the `norm_layer` of a layer or a network.

    Args:
        norm_cfg: the type ("BN", "SyncBN", "GN" or another of mmcv's) and its options.
    """
    cnn: Any = importlib.import_module("mmcv.cnn")
    return lambda channels: cnn.build_norm_layer(dict(norm_cfg), channels)[1]


def register() -> tuple[str, ...]:
    """Adds the heads to mmseg's registry; further calls have no effect.

    - `StripPoolingHead(pool_sizes=(20, 12), modules=2)`: a 3x3 convolution and SPNet's mixed
      pooling.
    - `PyramidPoolingHead(bins=(1, 2, 3, 6))`: PSPNet's pyramid and its convolution in one.
    - `ContextEncodingHead(num_codes=32)`: a 3x3 convolution and EncNet's context encoding.

    Returns:
        The names of the heads.
    """
    registry: Any = importlib.import_module("mmseg.registry")
    heads: Any = importlib.import_module("mmseg.models.decode_heads.decode_head")

    class Head(heads.BaseDecodeHead):
        context: nn.Module

        def forward(self, inputs: Sequence[Tensor]) -> Tensor:
            logits: Tensor = self.cls_seg(self.context(self._transform_inputs(inputs)))
            return logits

    class StripPoolingHead(Head):
        def __init__(self, pool_sizes: Any = (20, 12), modules: int = 2, **options: Any) -> None:
            super().__init__(**options)
            norm = norm_layer(self.norm_cfg)
            self.context = nn.Sequential(
                conv_unit(self.in_channels, self.channels, 3, norm),
                *(
                    MixedPooling(
                        self.channels, pool_sizes, norm_layer=norm, align_corners=self.align_corners
                    )
                    for _ in range(modules)
                ),
            )

    class PyramidPoolingHead(Head):
        def __init__(self, bins: Any = (1, 2, 3, 6), **options: Any) -> None:
            super().__init__(**options)
            norm = norm_layer(self.norm_cfg)
            self.context = nn.Sequential(
                PyramidPoolingConv(
                    self.in_channels, self.channels, bins, branch_channels=self.channels,
                    align_corners=self.align_corners, norm_layer=norm,
                ),
                norm(self.channels),
                nn.ReLU(inplace=True),
            )  # fmt: skip

    class Encoded(ContextEncoding):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)[0]

    class ContextEncodingHead(Head):
        def __init__(self, num_codes: int = 32, **options: Any) -> None:
            super().__init__(**options)
            norm = norm_layer(self.norm_cfg)
            self.context = nn.Sequential(
                conv_unit(self.in_channels, self.channels, 3, norm),
                Encoded(self.channels, self.num_classes, num_codes, se_loss=False, norm_layer=norm),
            )

    for head in (StripPoolingHead, PyramidPoolingHead, ContextEncodingHead):
        if head.__name__ not in registry.MODELS:
            registry.MODELS.register_module(module=head)
    return HEADS
