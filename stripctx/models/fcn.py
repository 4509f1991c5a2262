"""FCN (Long et al., CVPR 2015) on a dilated backbone: the baseline without context module."""

from __future__ import annotations

from torch import nn

from stripctx import upstream
from stripctx.models.backbones import Weights
from stripctx.models.build import assemble
from stripctx.models.heads import FCNHead
from stripctx.models.network import Backbone, NormLayer, SegmentationNetwork
from stripctx.models.registry import register


class FCN(SegmentationNetwork):
    """A fully convolutional head on the last stage. Created by `fcn`."""

    layouts = (upstream.ENCODING.plus((r"head\.conv5\.", "head.")), upstream.TORCHVISION)


@register
def fcn(
    num_classes: int,
    backbone: str | Backbone = "resnet50",
    *,
    backbone_weights: Weights | None = None,
    aux: bool = True,
    output_stride: int = 8,
    dilation: str = "contracted",
    dropout: float = 0.1,
    align_corners: bool = True,
    norm_layer: NormLayer = nn.BatchNorm2d,
) -> FCN:
    """FCN as in PyTorch-Encoding and torchvision.

    load_state_dict accepts the checkpoints of both. PyTorch-Encoding's ResNets with a deep stem are
    `resnet50s` etc. here; torchvision's networks need align_corners=False.

    Args:
        num_classes: K.
        backbone: see `create_backbone`.
        backbone_weights: the backbone's ImageNet weights, a path or a state_dict.
        aux: whether to add an auxiliary head on the third stage.
        output_stride: of the backbone.
        dilation: the backbone's dilation scheme.
        dropout: before both classifiers, on elements.
        align_corners: of the last resize.
        norm_layer: creates the norms.

    Shape:
        (N, 3, H, W) of any size to `out`, and in training `aux`, (N, K, H, W).

    Examples:
        >>> network = fcn(21, "resnet18")
        >>> {name: tuple(y.shape) for name, y in network(torch.randn(2, 3, 60, 75)).items()}
        {'out': (2, 21, 60, 75), 'aux': (2, 21, 60, 75)}
    """
    return assemble(
        "fcn",
        FCN,
        lambda channels: FCNHead(channels[3], num_classes, dropout=dropout, norm_layer=norm_layer),
        num_classes,
        backbone,
        backbone_weights=backbone_weights,
        aux=aux,
        output_stride=output_stride,
        dilation=dilation,
        dropout=dropout,
        channel_dropout=False,
        align_corners=align_corners,
        norm_layer=norm_layer,
    )
