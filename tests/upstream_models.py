"""Small modules with the names, children and arithmetic of upstreams that cannot be installed:
semseg, SPNet, HANet, PyTorch-Encoding. Written from their description, in plain PyTorch; `fuse`
recognises them by the names of classes, attributes and arguments.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UP = {"mode": "bilinear", "align_corners": True}


def unit(inputs: int, outputs: int, kernel: Any, relu: bool = True) -> nn.Sequential:
    """A convolution of the same size without bias, a norm and optionally a ReLU."""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    conv = nn.Conv2d(inputs, outputs, kernel, 1, (kernel[0] // 2, kernel[1] // 2), bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU(inplace=True)] * relu))


# semseg


class PPM(nn.Module):
    def __init__(
        self, in_dim: int, reduction_dim: int, bins: tuple[int, ...], align_corners: bool = True
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.features = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(b), *unit(in_dim, reduction_dim, 1)) for b in bins
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for branch in self.features:
            parts.append(
                F.interpolate(
                    branch(x), x.shape[2:], mode="bilinear", align_corners=self.align_corners
                )
            )
        return torch.cat(parts, 1)


class PSPNet(nn.Module):
    """Its forward calls another of its methods, `use`, between the pyramid and the classifier."""

    def __init__(self, classes: int = 3, **options: Any) -> None:
        super().__init__()
        self.layer0 = unit(3, 8, 3)
        self.ppm = PPM(8, 2, (1, 2, 3, 6), **options)
        self.cls = nn.Sequential(
            *unit(16, 8, 3), nn.Dropout2d(0.1), nn.Conv2d(8, classes, kernel_size=1)
        )
        self.aux = nn.Conv2d(8, classes, 1)

    def use(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        size = x.shape[2:]
        features = self.layer0(x)
        x = self.cls(self.use(self.ppm(features)))
        x = F.interpolate(x, size=size, **UP)
        return (x, self.aux(features)) if self.training else x


# SPNet


class SPBlock(nn.Module):
    def __init__(self, inplanes: int, outplanes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, outplanes, (3, 1), padding=(1, 0), bias=False)
        self.bn1 = nn.BatchNorm2d(outplanes)
        self.conv2 = nn.Conv2d(inplanes, outplanes, (1, 3), padding=(0, 1), bias=False)
        self.bn2 = nn.BatchNorm2d(outplanes)
        self.conv3 = nn.Conv2d(outplanes, outplanes, 1, bias=True)
        self.pool1 = nn.AdaptiveAvgPool2d((None, 1))
        self.pool2 = nn.AdaptiveAvgPool2d((1, None))
        self.relu = nn.ReLU(inplace=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.bn1(self.conv1(self.pool1(x))).expand_as(x)
        cols = self.bn2(self.conv2(self.pool2(x))).expand_as(x)
        return self.conv3(self.relu(rows + cols)).sigmoid()


class Bottleneck(nn.Module):
    def __init__(self, planes: int, spm: bool) -> None:
        super().__init__()
        self.conv2, self.bn2 = unit(planes, planes, 3, relu=False)
        self.conv3, self.bn3 = unit(planes, planes, 1, relu=False)
        self.relu = nn.ReLU(inplace=True)
        self.spm = SPBlock(planes, planes) if spm else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn2(self.conv2(x)))
        if self.spm is not None:
            out = out * self.spm(out)
        return self.relu(self.bn3(self.conv3(out)) + x)


class StripPooling(nn.Module):
    def __init__(self, in_channels: int, pool_size: tuple[int, int], up_kwargs: Any) -> None:
        super().__init__()
        width = in_channels // 4
        self.pool1 = nn.AdaptiveAvgPool2d(pool_size[0])
        self.pool2 = nn.AdaptiveAvgPool2d(pool_size[1])
        self.pool3 = nn.AdaptiveAvgPool2d((1, None))
        self.pool4 = nn.AdaptiveAvgPool2d((None, 1))
        self.conv1_1 = unit(in_channels, width, 1)
        self.conv1_2 = unit(in_channels, width, 1)
        for i in range(3):
            setattr(self, f"conv2_{i}", unit(width, width, 3, relu=False))
        self.conv2_3 = unit(width, width, (1, 3), relu=False)
        self.conv2_4 = unit(width, width, (3, 1), relu=False)
        self.conv2_5 = unit(width, width, 3)
        self.conv2_6 = unit(width, width, 3)
        self.conv3 = unit(2 * width, in_channels, 1, relu=False)
        self._up_kwargs = up_kwargs

    def forward(self, x: Tensor) -> Tensor:
        def up(y: Tensor) -> Tensor:
            return F.interpolate(y, x.shape[2:], **self._up_kwargs)

        y, z = self.conv1_1(x), self.conv1_2(x)
        total = self.conv2_0(y) + up(self.conv2_1(self.pool1(y))) + up(self.conv2_2(self.pool2(y)))
        strips = up(self.conv2_4(self.pool4(z))) + up(self.conv2_3(self.pool3(z)))
        short, long = self.conv2_5(F.relu_(total)), self.conv2_6(F.relu_(strips))
        return F.relu_(x + self.conv3(torch.cat([short, long], dim=1)))


class SPNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pretrained = nn.Sequential(
            unit(3, 8, 3), Bottleneck(8, spm=False), Bottleneck(8, spm=True)
        )
        self.strip_pool1 = StripPooling(8, (5, 3), UP)
        self.score_layer = nn.Sequential(unit(8, 8, 3), nn.Dropout2d(0.1), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.score_layer(self.strip_pool1(self.pretrained(x)))


# HANet


class PosEncoding1D(nn.Module):
    def __init__(self, pos_rfactor: int, dim: int, pos_noise: float = 0.0) -> None:
        super().__init__()
        self.pos_rfactor, self.pos_noise, self.last = pos_rfactor, pos_noise, 128 // pos_rfactor
        self.pos_layer = nn.Embedding(self.last + 1, dim)
        self.pos_layer.weight.requires_grad_(False)

    def forward(self, x: Tensor, pos: tuple[Tensor, Tensor]) -> Tensor:
        index = (pos[0] // self.pos_rfactor)[:, :, :1].transpose(1, 2)
        index = F.interpolate(index.float(), x.shape[2]).long()[:, 0]
        if self.training and self.pos_noise > 0:
            noise = torch.randn_like(index.float()).mul(self.pos_noise).floor().long()
            index = (index + noise.clamp(-2, 2)).clamp(0, self.last)
        return x + self.pos_layer(index).transpose(1, 2)


class HANet_Conv(nn.Module):  # noqa: N801
    def __init__(
        self,
        in_channel: int,
        out_channel: int,
        kernel_size: int = 3,
        r_factor: int = 64,
        layer: int = 3,
        pos_injection: int = 2,
        pos_rfactor: int = 8,
        pooling: str = "mean",
        dropout_prob: float = 0.0,
        pos_noise: float = 0.0,
        norm: type[nn.Module] = nn.SyncBatchNorm,
    ) -> None:
        super().__init__()
        self.pooling, self.pos_injection, self.layer = pooling, pos_injection, layer
        self.dropout_prob = dropout_prob
        width, size = math.ceil(in_channel / r_factor), (128 // pos_rfactor, 1)
        kind = nn.AdaptiveAvgPool2d if pooling == "mean" else nn.AdaptiveMaxPool2d
        self.rowpool = kind(size)
        self.attention_first = nn.Sequential(
            nn.Conv1d(in_channel, width, 1, bias=False), norm(width), nn.ReLU(inplace=True)
        )
        last = (out_channel, kernel_size, 1, kernel_size // 2)
        if layer == 3:
            self.attention_second = nn.Sequential(
                nn.Conv1d(width, 2 * width, 3, 1, 1), norm(2 * width), nn.ReLU(inplace=True)
            )
            self.attention_third = nn.Sequential(nn.Conv1d(2 * width, *last))
        else:
            self.attention_second = nn.Sequential(nn.Conv1d(width, *last))
        if dropout_prob > 0:
            self.dropout = nn.Dropout2d(dropout_prob)
        channels = in_channel if pos_injection == 1 else width
        table = PosEncoding1D(pos_rfactor, channels, pos_noise)
        setattr(self, "pos_emb1d_1st" if pos_injection == 1 else "pos_emb1d_2nd", table)

    def forward(
        self,
        x: Tensor,
        out: Tensor,
        pos: Any = None,
        return_attention: bool = False,
        return_posmap: bool = False,
        attention_loss: bool = False,
    ) -> Any:
        rows = self.rowpool(x).squeeze(3)
        if pos is not None and self.pos_injection == 1:
            rows = self.pos_emb1d_1st(rows, pos)
        if self.dropout_prob > 0:
            rows = self.dropout(rows)
        rows = self.attention_first(rows)
        if pos is not None and self.pos_injection == 2:
            rows = self.pos_emb1d_2nd(rows, pos)
        rows = self.attention_second(rows)
        if self.layer == 3:
            rows = self.attention_third(rows)
        attention = F.interpolate(rows.sigmoid(), size=out.shape[2], mode="linear")
        gated = out * attention[..., None]
        if attention_loss:
            return gated, rows
        return (gated, attention) if return_attention else gated


class HANet(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.low, self.high = unit(3, 8, 3), unit(8, 6, 3)
        self.hanet0 = HANet_Conv(8, 6, r_factor=2, **options)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        heights = torch.arange(x.shape[2], device=x.device) * 128 // x.shape[2]
        pos = heights[None, :, None].expand(x.shape[0], -1, x.shape[3])
        return self.hanet0(low, self.high(low), (pos, pos))


# PyTorch-Encoding


class PyramidPooling(nn.Module):
    def __init__(self, in_channels: int, up_kwargs: Any) -> None:
        super().__init__()
        self._up_kwargs = up_kwargs
        for i, size in enumerate((1, 2, 3, 6), 1):
            setattr(self, f"pool{i}", nn.AdaptiveAvgPool2d(size))
            setattr(self, f"conv{i}", unit(in_channels, in_channels // 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        maps = [getattr(self, f"conv{i}")(getattr(self, f"pool{i}")(x)) for i in range(1, 5)]
        maps = [F.interpolate(one, x.shape[2:], **self._up_kwargs) for one in maps]
        return torch.cat((x, *maps), 1)


class PSPHead(nn.Module):
    def __init__(self, in_channels: int = 8) -> None:
        super().__init__()
        rest = (nn.Dropout(0.1), nn.Conv2d(4, 3, 1))
        pyramid = PyramidPooling(in_channels, UP)
        self.conv5 = nn.Sequential(pyramid, *unit(2 * in_channels, 4, 3), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv5(x)


class Encoding(nn.Module):
    def __init__(self, D: int, K: int) -> None:  # noqa: N803
        super().__init__()
        self.D, self.K = D, K
        self.codewords = nn.Parameter(torch.randn(K, D) * 0.5)
        self.scale = nn.Parameter(-torch.rand(K) / D)

    def forward(self, x: Tensor) -> Tensor:
        residuals = x.flatten(2).transpose(1, 2)[:, :, None] - self.codewords
        weights = (residuals.square().sum(3) * self.scale).softmax(2)
        return (weights[..., None] * residuals).sum(1)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class EncModule(nn.Module):
    def __init__(self, in_channels: int, nclass: int, ncodes: int, se_loss: bool = True) -> None:
        super().__init__()
        self.se_loss = se_loss
        self.encoding = nn.Sequential(
            *unit(in_channels, in_channels, 1),
            Encoding(D=in_channels, K=ncodes),
            nn.BatchNorm1d(ncodes),
            nn.ReLU(inplace=True),
            Mean(),
        )
        self.fc = nn.Sequential(nn.Linear(in_channels, in_channels), nn.Sigmoid())
        if se_loss:
            self.selayer = nn.Linear(in_channels, nclass)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        encoded = self.encoding(x)
        features = F.relu_(x + x * self.fc(encoded)[..., None, None])
        return (features, self.selayer(encoded)) if self.se_loss else (features,)


class EncHead(nn.Module):
    def __init__(self, se_loss: bool = True) -> None:
        super().__init__()
        self.conv5 = unit(3, 8, 3)
        self.encmodule = EncModule(8, 3, 4, se_loss)
        self.conv6 = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = list(self.encmodule(self.conv5(x)))
        outputs[0] = self.conv6(outputs[0])
        return outputs


# Pyramids that `fuse` must not change.


class pyramidPooling(nn.Module):  # noqa: N801
    """pytorch-semseg's: windows of a fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.path_module_list = nn.ModuleList(unit(8, 2, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for branch, bins in zip(self.path_module_list, (6, 3, 2, 1), strict=True):
            window = (x.shape[2] // bins, x.shape[3] // bins)
            maps.append(F.interpolate(branch(F.avg_pool2d(x, window, window)), x.shape[2:], **UP))
        return torch.cat(maps, 1)


class PSPModule(nn.Module):
    """Lextal's: stages without norm, x last, a bottleneck inside the module."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.Conv2d(8, 8, 1, bias=False))
            for size in (1, 2, 3, 6)
        )
        self.bottleneck = nn.Conv2d(40, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [F.interpolate(stage(x), x.shape[2:], mode="bilinear") for stage in self.stages]
        return F.relu(self.bottleneck(torch.cat([*maps, x], 1)))
