"""Assembles a segmentation network from the options common to all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from stripctx.models.backbones import Weights, create_backbone
from stripctx.models.heads import FCNHead
from stripctx.models.network import Backbone, Channels, NormLayer, SegmentationNetwork

Network = TypeVar("Network", bound=SegmentationNetwork)


def assemble(
    name: str,
    kind: Callable[..., Network],
    make_head: Callable[[Channels], nn.Module],
    num_classes: int,
    backbone: str | Backbone,
    *,
    backbone_weights: Weights | None,
    aux: bool,
    output_stride: int,
    dilation: str,
    dropout: float,
    channel_dropout: bool,
    align_corners: bool,
    norm_layer: NormLayer,
    strip_pooling: bool = False,
    aux_channels: int | None = None,
    aux_bias: bool = False,
) -> Network:
    """A network of class `kind`: a backbone, the head created by `make_head` for its channels, and
    an auxiliary `FCNHead` on the third stage.

    Args:
        name: the public function, for error messages.
        aux: whether to add an auxiliary head, with the options dropout, channel_dropout,
            aux_channels and aux_bias.
        backbone_weights, output_stride, dilation, strip_pooling: see `create_backbone`.
    """
    check_num_classes(name, num_classes)
    stages = create_backbone(
        backbone,
        weights=backbone_weights,
        output_stride=output_stride,
        dilation=dilation,
        strip_pooling=strip_pooling,
        norm_layer=norm_layer,
    )
    head = make_head(stages.channels)
    aux_head = None
    if aux:
        aux_head = FCNHead(
            stages.channels[2],
            num_classes,
            hidden_channels=aux_channels,
            dropout=dropout,
            channel_dropout=channel_dropout,
            bias=aux_bias,
            norm_layer=norm_layer,
        )
    return kind(stages, head, aux_head, align_corners=align_corners)


def check_num_classes(name: str, num_classes: int) -> None:
    if num_classes < 1:
        raise ValueError(f"{name}: num_classes must be positive, got {num_classes}")
