"""Puts a segmentation network together from the options that all of them take."""

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
    """A backbone, what `make_head` makes for its channels, and an auxiliary `FCNHead` on the third
    stage, as one network of the class `kind`.

    Args:
        name: of the function that the user called, for errors.
        aux: whether there is an auxiliary head; dropout, channel_dropout, aux_channels and aux_bias
            are options of it.
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
