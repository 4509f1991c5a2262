"""Residual blocks (He et al., CVPR 2016). Bottlenecks may be wide (Wide ResNet, Zagoruyko and
Komodakis, BMVC 2016), grouped (ResNeXt, Xie et al., CVPR 2017), or contain strip pooling (SPNet,
Hou et al., CVPR 2020). Each ReLU is a separate module, because quantisers that match patterns in an
exported graph would treat two calls of one module as one."""

from __future__ import annotations

from torch import Tensor, nn

from stripctx.layers import StripPooling
from stripctx.models.network import NormLayer


def conv3x3(
    in_channels: int, channels: int, stride: int, dilation: int, groups: int = 1
) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels,
        channels,
        3,
        stride,
        padding=dilation,
        dilation=dilation,
        groups=groups,
        bias=False,
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. The first has the block's dilation, the second that of
    the stage, as in PyTorch-Encoding. mmseg does not dilate the second, and with mmseg's stem it is
    not dilated here either."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int,
        dilation: int,
        second_dilation: int,
        downsample: nn.Module | None,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, planes, stride, dilation)
        self.bn1 = norm_layer(planes)
        self.conv2 = conv3x3(planes, planes, 1, second_dilation)
        self.bn2 = norm_layer(planes)
        self.relu1 = nn.ReLU(inplace=True)
        self.relu2 = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(out)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut. Stride, dilation and groups apply to the 3x3.
    `spm`, if present, gates the output of the 3x3 convolution after its ReLU."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int,
        dilation: int,
        groups: int,
        group_width: int,
        downsample: nn.Module | None,
        strip_pooling: bool,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        width = planes * groups * group_width // 64
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm_layer(width)
        self.conv2 = conv3x3(width, width, stride, dilation, groups)
        self.bn2 = norm_layer(width)
        self.conv3 = nn.Conv2d(width, self.expansion * planes, 1, bias=False)
        self.bn3 = norm_layer(self.expansion * planes)
        self.relu1 = nn.ReLU(inplace=True)
        self.relu2 = nn.ReLU(inplace=True)
        self.relu3 = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.spm = StripPooling(width, norm_layer=norm_layer) if strip_pooling else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        if self.spm is not None:
            out = self.spm(out)
        return self.relu3(self.bn3(self.conv3(out)) + shortcut)
