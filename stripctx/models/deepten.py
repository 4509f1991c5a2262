"""Deep TEN (Zhang, Xue, Dana, CVPR 2017): texture classification by an orderless encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from stripctx import upstream
from stripctx.layers import EncodingLayer
from stripctx.models.backbones import Weights, create_backbone
from stripctx.models.build import check_num_classes
from stripctx.models.network import Backbone, NormLayer, check_image
from stripctx.models.registry import register


class UnitLength(nn.Module):
    """Normalises (N, L) to vectors of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1, eps=1e-8)


class DeepTEN(nn.Module):
    """A backbone, a 1x1 convolution, the encoding layer, normalisation to unit length and a linear
    classifier. Created by `deepten`.

    Shape:
        (N, 3, H, W) of any size to logits (N, num_classes).
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        channels: int,
        num_codes: int,
        scale_dropout: bool,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(
            nn.Conv2d(backbone.channels[3], channels, 1),
            norm_layer(channels),
            nn.ReLU(inplace=True),
            EncodingLayer(channels, num_codes, scale_dropout=scale_dropout),
            nn.Flatten(),
            UnitLength(),
            nn.Linear(channels * num_codes, num_classes),
        )
        upstream.accept(self, upstream.ENCODING)

    def forward(self, x: Tensor) -> Tensor:
        check_image(self, x)
        return self.head(self.backbone(x)[3])

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


@register
def deepten(
    num_classes: int,
    backbone: str | Backbone = "resnet50",
    *,
    backbone_weights: Weights | None = None,
    channels: int = 128,
    num_codes: int = 32,
    scale_dropout: bool = False,
    norm_layer: NormLayer = nn.BatchNorm2d,
) -> DeepTEN:
    """Deep TEN as in PyTorch-Encoding, for classifying materials and textures.

    load_state_dict accepts upstream's checkpoints, whose `resnet50` is `resnet50s` here.

    Args:
        num_classes: K.
        backbone: see `create_backbone`; not dilated.
        backbone_weights: the backbone's ImageNet weights, a path or a state_dict.
        channels: the number of channels of the encoding's input.
        num_codes, scale_dropout: of the encoding; see `EncodingLayer`.
        norm_layer: creates the norms.

    Shape:
        (N, 3, H, W) of any size to logits (N, K).

    Examples:
        >>> deepten(23, "resnet18")(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 23])
    """
    check_num_classes("deepten", num_classes)
    if channels < 1:
        raise ValueError(f"deepten: channels must be positive, got {channels}")
    stages = create_backbone(
        backbone, weights=backbone_weights, output_stride=32, norm_layer=norm_layer
    )
    return DeepTEN(
        stages,
        num_classes,
        channels=channels,
        num_codes=num_codes,
        scale_dropout=scale_dropout,
        norm_layer=norm_layer,
    )
