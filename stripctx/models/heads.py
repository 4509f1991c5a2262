"""Building blocks of the segmentation heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from stripctx import functional
from stripctx.models.network import NormLayer


def conv_unit(
    in_channels: int,
    channels: int,
    kernel_size: int,
    norm_layer: NormLayer,
    *,
    dilation: int = 1,
    bias: bool = False,
) -> nn.Sequential:
    """Convolution, normalisation, ReLU; (N, in_channels, H, W) to (N, channels, H, W)."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(
            in_channels, channels, kernel_size, padding=padding, dilation=dilation, bias=bias
        ),
        norm_layer(channels),
        nn.ReLU(inplace=True),
    )


def over_pyramid(
    unit: nn.Sequential, x: Tensor, levels: Sequence[Tensor], align_corners: bool
) -> Tensor:
    """Applies layers that begin with a 3x3 convolution to the concatenation of a map and smaller
    ones, without building it (`functional.pyramid_conv`)."""
    conv, *others = unit
    y = functional.pyramid_conv(
        x, levels, cast(nn.Conv2d, conv).weight, padding=1, align_corners=align_corners
    )
    for layer in others:
        y = layer(y)
    return y


def classifier(
    channels: int, num_classes: int, *, dropout: float, channel_dropout: bool
) -> nn.Sequential:
    """Dropout of whole channels or of elements, and a 1x1 convolution to the classes."""
    return nn.Sequential(
        nn.Dropout2d(dropout) if channel_dropout else nn.Dropout(dropout),
        nn.Conv2d(channels, num_classes, 1),
    )


class FCNHead(nn.Sequential):
    """3x3 convolution, normalisation, ReLU, dropout, 1x1 convolution to the classes.

    The head of FCN (Long et al., CVPR 2015, as PyTorch-Encoding builds it) and the auxiliary head
    of every network here.

    Args:
        in_channels: C.
        num_classes: K.
        hidden_channels: the width between the convolutions, by default in_channels // 4. HANet's
            auxiliary head has 512.
        dropout: the dropout probability.
        channel_dropout: whether to drop whole channels (semseg, SPNet, HANet, mmseg) or elements
            (PyTorch-Encoding, torchvision).
        bias: whether the 3x3 convolution has a bias; only in HANet's auxiliary head.
        norm_layer: creates the norm, called with hidden_channels.

    Shape:
        (N, C, H, W) to (N, K, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        hidden_channels: int | None = None,
        dropout: float = 0.1,
        channel_dropout: bool = False,
        bias: bool = False,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        if in_channels < 1:
            raise ValueError(f"FCNHead: in_channels must be positive, got {in_channels}")
        if num_classes < 1:
            raise ValueError(f"FCNHead: num_classes must be positive, got {num_classes}")
        hidden = hidden_channels or max(1, in_channels // 4)
        super().__init__(
            *conv_unit(in_channels, hidden, 3, norm_layer, bias=bias),
            *classifier(hidden, num_classes, dropout=dropout, channel_dropout=channel_dropout),
        )
