"""Strip pooling and mixed pooling as layers: SPNet's modules (Hou et al., CVPR 2020, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripctx import functional, tracing, upstream
from stripctx.layers.pyramid import NormLayer, refuse_batch_of_one, size_pairs
from stripctx.ops import checks

ARMS = ("both", "short", "long")
POOLINGS = ("strip", "global")


class StripPooling(nn.Module):
    """SPNet's strip pooling module (SPM): gates a map by the means of its rows and columns.

        x * sigmoid(conv3(relu(bn1(conv1(mean over W)) + bn2(conv2(mean over H)))))

    conv1 is a 3x1 and conv2 a 1x3 convolution along the strip, both without bias; conv3 is a 1x1
    convolution with bias (Hou et al., CVPR 2020, eq. 1 to 4).

    Upstream calls this module `SPBlock`; it returns only the gate and is used as `out * gate(out)`.
    Upstream's class `StripPooling` is the mixed pooling module. An SPBlock's state_dict loads
    unchanged: `conv1.weight`, `bn1.*`, `conv2.weight`, `bn2.*`, `conv3.weight`, `conv3.bias`.

    Args:
        in_channels: C.
        norm_layer: creates the two norms, called with C. Their statistics are over N*H and N*W
            samples.

    Shape:
        (N, C, H, W) to (N, C, H, W), any floating dtype.

    Examples:
        >>> layer = StripPooling(64)
        >>> layer(torch.randn(2, 64, 32, 48)).shape
        torch.Size([2, 64, 32, 48])
    """

    def __init__(self, in_channels: int, *, norm_layer: NormLayer = nn.BatchNorm2d) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"StripPooling: in_channels must be positive, got {in_channels}")
        self.conv1 = nn.Conv2d(in_channels, in_channels, (3, 1), padding=(1, 0), bias=False)
        self.bn1 = norm_layer(in_channels)
        self.conv2 = nn.Conv2d(in_channels, in_channels, (1, 3), padding=(0, 1), bias=False)
        self.bn2 = norm_layer(in_channels)
        self.conv3 = nn.Conv2d(in_channels, in_channels, 1)
        upstream.accept(self)

    @tracing.one_call
    def forward(self, x: Tensor) -> Tensor:
        checks.feature_map("StripPooling", "x", x, self.conv1.in_channels)
        rows, cols = functional.strip_pool(x)
        rows = self.bn1(self.conv1(rows))
        cols = self.bn2(self.conv2(cols))
        return functional.strip_gate(x, rows, cols, self.conv3.weight, self.conv3.bias)


class MixedPooling(nn.Module):
    """SPNet's mixed pooling module (MPM): a small pyramid for short-range context and strips for
    long-range context, in parallel inside a residual block.

        short = conv2_5(relu(conv2_0(y) + up(conv2_1(pool(y))) + up(conv2_2(pool(y)))))
        long  = conv2_6(relu(conv2_3(mean over H of z) + conv2_4(mean over W of z)))
        out   = relu(x + conv3(concat(short, long)))

    with y = conv1_1(x) and z = conv1_2(x) of C // 4 channels (Hou et al., CVPR 2020, section 3.2).
    Every convolution has no bias and is followed by a norm; those that produce y, z, short and long
    also by a ReLU. The sums over the pyramid and over the strips take one pass each.

    Upstream calls this module `StripPooling(in_channels, pool_size, norm_layer, up_kwargs)`. Its
    state_dict loads unchanged: `conv1_1.{0,1}` to `conv3.{0,1}`. As in upstream, (20, 12) means two
    square grids, not one of 20 x 12.

    Args:
        in_channels: C, at least 4.
        pool_sizes: the two grids of the pyramid, each (h, w) or b for (b, b).
        arms: "both", "short" or "long". With a single branch, conv3 has half as many inputs and the
            other branch's modules do not exist. Upstream always has both.
        pooling: of the long branch: "strip", or "global" to take both means over the whole map, the
            paper's comparison. The parameters are the same, but only the middle taps of conv2_3 and
            conv2_4 are used, and batch norms cannot be trained with batch size 1.
        norm_layer: creates the norms, called with the number of channels.
        align_corners: of the pyramid's bilinear interpolation. Strips are broadcast.

    Shape:
        (N, C, H, W) to (N, C, H, W), any floating dtype.

    Examples:
        >>> MixedPooling(64)(torch.randn(2, 64, 30, 40)).shape
        torch.Size([2, 64, 30, 40])
    """

    def __init__(
        self,
        in_channels: int,
        pool_sizes: tuple[int | tuple[int, int], int | tuple[int, int]] = (20, 12),
        *,
        arms: str = "both",
        pooling: str = "strip",
        norm_layer: NormLayer = nn.BatchNorm2d,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        if in_channels < 4:
            raise ValueError(f"MixedPooling: in_channels must be at least 4, got {in_channels}")
        if arms not in ARMS:
            raise ValueError(f"MixedPooling: arms must be one of {', '.join(ARMS)}, got {arms!r}")
        if pooling not in POOLINGS:
            raise ValueError(
                f"MixedPooling: pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}"
            )
        self.in_channels = in_channels
        self.pool_sizes = size_pairs("MixedPooling", "pool_sizes", pool_sizes, (2,), "two")
        self.arms = arms
        self.pooling = pooling
        self.align_corners = align_corners
        width = in_channels // 4

        def unit(inputs: int, outputs: int, kernel: tuple[int, int], relu: bool) -> nn.Sequential:
            padding = (kernel[0] // 2, kernel[1] // 2)
            layers = [
                nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False),
                norm_layer(outputs),
            ]
            return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))

        if arms != "long":
            self.conv1_1 = unit(in_channels, width, (1, 1), True)
            self.conv2_0 = unit(width, width, (3, 3), False)
            self.conv2_1 = unit(width, width, (3, 3), False)
            self.conv2_2 = unit(width, width, (3, 3), False)
            self.conv2_5 = unit(width, width, (3, 3), True)
        if arms != "short":
            self.conv1_2 = unit(in_channels, width, (1, 1), True)
            self.conv2_3 = unit(width, width, (1, 3), False)
            self.conv2_4 = unit(width, width, (3, 1), False)
            self.conv2_6 = unit(width, width, (3, 3), True)
        self.conv3 = unit(2 * width if arms == "both" else width, in_channels, (1, 1), False)
        upstream.accept(self)

    @tracing.one_call
    def forward(self, x: Tensor) -> Tensor:
        checks.feature_map("MixedPooling", "x", x, self.in_channels)
        paths = []
        if self.arms != "long":
            paths.append(self._short(self.conv1_1(x)))
        if self.arms != "short":
            paths.append(self._long(self.conv1_2(x)))
        mixed = torch.cat(paths, 1) if len(paths) == 2 else paths[0]
        return F.relu(x + self.conv3(mixed), inplace=True)

    def _short(self, y: Tensor) -> Tensor:
        fine, coarse = functional.pyramid_pool(y, self.pool_sizes)
        levels = [self.conv2_1(fine), self.conv2_2(coarse)]
        return self.conv2_5(
            functional.pyramid_add_relu(self.conv2_0(y), levels, align_corners=self.align_corners)
        )

    def _long(self, z: Tensor) -> Tensor:
        if self.pooling == "strip":
            rows, cols = functional.strip_pool(z)
            rows, cols = self.conv2_4(rows), self.conv2_3(cols)
        else:
            if self.training and z.shape[0] == 1:
                for unit in (self.conv2_3, self.conv2_4):
                    refuse_batch_of_one(
                        "MixedPooling", unit, 'pooling="strip" there is no such map'
                    )
            mean = functional.pyramid_pool(z, (1,))[0]
            rows = self.conv2_4(mean).expand(-1, -1, z.shape[2], -1)
            cols = self.conv2_3(mean).expand(-1, -1, -1, z.shape[3])
        return self.conv2_6(functional.strip_add_relu(rows, cols))

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, pool_sizes={self.pool_sizes}, arms={self.arms!r}, "
            f"pooling={self.pooling!r}, align_corners={self.align_corners}"
        )
