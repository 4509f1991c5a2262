"""Hand-written U-Nets and feature pyramids: a common stem, and decoders in many styles.

Every decoder takes maps of 1, 1/2 and 1/4 of a size, with 6, 10 and 14 channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (6, 10, 14)
Maps = tuple[Tensor, Tensor, Tensor]


class UNet(nn.Module):
    """A stem that returns three maps, a decoder, and a classifier of its result."""

    def __init__(self, decoder: nn.Module, channels: int = 8) -> None:
        super().__init__()
        fine, half, quarter = WIDTHS
        self.stem = double(3, fine)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), double(fine, half))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), double(half, quarter))
        self.decoder = decoder
        self.classifier = nn.Conv2d(channels, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.stem(image)
        half = self.down1(fine)
        return self.classifier(self.decoder((fine, half, self.down2(half))))


def double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in ((inputs, outputs), (outputs, outputs)):
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b)]
        layers += [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class Stage(nn.Module):
    """Pads to the skip's size, which exceeds twice the map's for odd images."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv = double(inputs + skip, outputs)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        x1 = self.up(x1)
        dy, dx = x2.size()[2] - x1.size()[2], x2.size()[3] - x1.size()[3]
        x1 = F.pad(x1, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.conv(torch.cat([x2, x1], dim=1))


class Padding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up1, self.up2 = Stage(14, 10, 8), Stage(8, 6, 8)

    def forward(self, maps: Maps) -> Tensor:
        return self.up2(self.up1(maps[2], maps[1]), maps[0])


class Shapes(nn.Module):
    """The size from `.shape`; the map first; align_corners=False."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([double(24, 8), double(14, 8)])

    def forward(self, maps: Maps) -> Tensor:
        x = maps[2]
        for stage, skip in zip(self.stages, (maps[1], maps[0]), strict=True):
            size = skip.shape[-2:]
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            assert x.shape[-2:] == skip.shape[-2:] and x.dim() == 4 and x.dtype == skip.dtype
            x = stage(torch.cat((x, skip), 1))
        return x


class UpFirst(nn.Module):
    """Nearest, by a factor; `nn.Upsample` and a convolution in one Sequential; dropout,
    disabled."""

    def __init__(self) -> None:
        super().__init__()
        self.up2 = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Dropout2d(0.0), nn.Conv2d(14, 10, 3, padding=1)
        )
        self.up1 = nn.Upsample(scale_factor=(2, 2), mode="nearest-exact")
        self.conv1, self.conv2 = double(20, 8), double(14, 8)

    def forward(self, maps: Maps) -> Tensor:
        x = self.conv1(torch.concat([fit(self.up2(maps[2]), maps[1]), maps[1]], 1))
        return self.conv2(torch.cat([fit(self.up1(x), maps[0]), maps[0]], 1))


def fit(x: Tensor, like: Tensor) -> Tensor:
    """Resizes if an odd image requires it, and makes the result contiguous."""
    _, _, *size = like.shape
    if [*x.shape[2:]] != size:
        x = F.interpolate(x, size, mode="nearest")
    return x.contiguous()


class Functional(nn.Module):
    """Own parameters, `torch.nn.functional` and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 30, 3, 3) / 16)
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, maps: Maps) -> Tensor:
        fine, half, quarter = maps
        size = (fine.size(2), fine.size(-1))
        up = [F.interpolate(one, size, mode="bilinear") for one in (half, quarter)]
        x = F.conv2d(torch.cat([up[0], fine, up[1]], -3), self.weight, self.bias, padding=(1, 1))
        return F.relu_(x)


class Nested(nn.Module):
    """Nested concatenations, as in UNet++, with different modes and alignments."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6 + 14 + 10 + 6 + 10, 8, (3, 1), padding=(1, 0), dilation=1)

    def forward(self, maps: Maps) -> Tensor:
        fine, half, quarter = maps
        size = fine.shape[2:]
        aligned = F.interpolate(quarter, size=size, mode="bilinear", align_corners=True)
        inner = torch.cat([aligned, F.interpolate(half, size=size, mode="bilinear")], 1)
        nearest = F.interpolate(half, size=size)
        outer = torch.cat([fine, inner, torch.cat([torch.tanh(fine), nearest], 1)], 1)
        return self.conv(outer)


class AllUp(nn.Module):
    """All full-size maps are upsampled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(30, 8, 3, padding=2, dilation=2)

    def forward(self, maps: Maps) -> Tensor:
        size = [2 * extent for extent in maps[0].shape[2:]]
        ups = [F.interpolate(one, size=size, mode="bilinear", align_corners=False) for one in maps]
        return self.conv(torch.cat(ups, 1))


class Sums(nn.Module):
    """A feature pyramid: laterals, in-place sums, a ReLU over three maps, a product."""

    def __init__(self) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, 8, 1) for width in WIDTHS)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: Maps) -> Tensor:
        fine, half, quarter = (conv(x) for conv, x in zip(self.laterals, maps, strict=True))
        half = half + F.interpolate(quarter, size=half.shape[2:], mode="nearest")
        size = fine.shape[2:]
        both = fine + F.interpolate(half, size=size, mode="bilinear", align_corners=True)
        three = self.relu(both + F.interpolate(quarter, size=size, mode="bilinear"))
        fine += F.interpolate(quarter, size=size, mode="bilinear")
        return three * torch.sigmoid(fine)


class Gated(nn.Module):
    """An attention gate: a level is used in a product and in a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.conv = nn.Conv2d(10, 1, 1), double(16, 8)

    def forward(self, maps: Maps) -> Tensor:
        fine, half, _ = maps
        up = F.interpolate(half, size=fine.shape[2:], mode="bilinear", align_corners=False)
        gate = torch.sigmoid(F.interpolate(self.gate(half), size=fine.shape[2:], mode="bilinear"))
        return self.conv(torch.cat([fine * gate, up], 1)) * up.mean()


class Left(nn.Module):
    """Cases that are not fused: downsampling, bicubic, a norm in between, a depthwise
    convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(30)
        self.depthwise = nn.Conv2d(30, 30, 3, padding=1, groups=30)
        self.pointwise, self.strided = nn.Conv2d(60, 8, 1), nn.Conv2d(16, 8, 3, stride=2, padding=1)

    def forward(self, maps: Maps) -> Tensor:
        fine, half, quarter = maps
        size = fine.shape[2:]
        bicubic = F.interpolate(quarter, size=size, mode="bicubic")
        x = torch.cat([fine, F.interpolate(half, size=size, mode="bilinear"), bicubic], 1)
        x = self.pointwise(torch.cat([self.norm(x), self.depthwise(x)], 1))
        small = F.interpolate(fine, size=half.shape[2:], mode="bilinear", align_corners=False)
        y = self.strided(torch.cat([small, half], 1))
        return x + F.interpolate(y, size=size, mode="area")


DECODERS = (Padding, Shapes, UpFirst, Functional, Nested, AllUp, Sums, Gated, Left)
