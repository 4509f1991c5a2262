"""Atrous spatial pyramid pooling (Chen et al., Rethinking Atrous Convolution, 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stripctx import functional, tracing
from stripctx.layers.pyramid import refuse_batch_of_one
from stripctx.models.heads import conv_unit
from stripctx.models.network import NormLayer

RATES = {4: (24, 48, 72), 8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}


class ASPP(nn.Module):
    """Concatenates the mean of the map, a 1x1 convolution and three dilated 3x3 convolutions, in
    this order, each with `width` channels. The key names are HANet's.

    Args:
        in_channels: C.
        rates: the dilations of the 3x3 convolutions.
        width: the number of channels of each of the five branches.
        global_norm: False gives the mean's branch a bias instead of a norm, which permits training
            with batch size 1.
        norm_layer: creates the norms.

    Shape:
        (N, C, H, W) to (N, 5 * width, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        rates: Sequence[int],
        *,
        width: int = 256,
        global_norm: bool,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        self.out_channels = 5 * width
        self.features = nn.ModuleList(
            [
                conv_unit(in_channels, width, 1, norm_layer),
                *(conv_unit(in_channels, width, 3, norm_layer, dilation=rate) for rate in rates),
            ]
        )
        self.img_conv = (
            conv_unit(in_channels, width, 1, norm_layer)
            if global_norm
            else nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.ReLU(inplace=True))
        )

    @tracing.one_call
    def forward(self, x: Tensor) -> Tensor:
        image, parts = self._branches(x)
        return torch.cat([image.expand_as(parts[0]), *parts], 1)

    def before(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """`conv(self(x))`, without expanding the mean to a map."""
        image, parts = self._branches(x)
        return functional.pyramid_conv(
            torch.cat(parts, 1),
            [image],
            conv.weight,
            conv.bias,
            padding=conv.kernel_size[0] // 2,
            align_corners=True,
            x_index=-1,
        )

    def _branches(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        if self.training and x.shape[0] == 1:
            refuse_batch_of_one("ASPP", self.img_conv)
        image = self.img_conv(functional.pyramid_pool(x, (1,))[0])
        return image, [feature(x) for feature in self.features]


class ASPPConv(nn.Module):
    """ASPP followed by a 3x3 convolution without bias.

    Shape:
        (N, C, H, W) to (N, out_channels, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rates: Sequence[int],
        *,
        global_norm: bool,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        self.aspp = ASPP(in_channels, rates, global_norm=global_norm, norm_layer=norm_layer)
        self.conv = nn.Conv2d(self.aspp.out_channels, out_channels, 3, padding=1, bias=False)

    @tracing.one_call
    def forward(self, x: Tensor) -> Tensor:
        return self.aspp.before(self.conv, x)


def choose_rates(name: str, rates: Sequence[int] | None, output_stride: int) -> tuple[int, ...]:
    """`rates`, or the default for the output stride of the backbone."""
    chosen = RATES.get(output_stride, ()) if rates is None else tuple(rates)
    if len(chosen) != 3 or not all(rate > 0 for rate in chosen):
        raise ValueError(f"{name}: rates must be three positive integers, got {rates}")
    return chosen
