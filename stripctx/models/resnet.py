"""ResNet (He et al., CVPR 2016) for segmentation: dilated, with one of three stems."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from stripctx import upstream
from stripctx.models.blocks import BasicBlock, Bottleneck, conv3x3
from stripctx.models.network import Backbone, NormLayer

STEMS = {"7x7": (64,), "64-64-128": (64, 64, 128), "32-32-64": (32, 32, 64)}
BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
OUTPUT_STRIDES = (4, 8, 16, 32)
DILATIONS = ("contracted", "uniform", "multi_grid")


class StagePlan(NamedTuple):
    stride: int
    dilation: int
    block_dilations: tuple[int, ...]


def dilation_plan(blocks: tuple[int, ...], output_stride: int, dilation: str) -> list[StagePlan]:
    """The strides and dilations of all stages.

    Once `output_stride` is reached, strides become dilations. The schemes differ in the first block
    of such a stage and in the last stage:

    - `contracted` (PyTorch-Encoding, torchvision, mmseg): the first block keeps the dilation of the
      previous stage, an exact conversion of the strided network. At output stride 8: layer3
      1, 2, 2 ...; layer4 2, 4, 4.
    - `uniform` (semseg, HANet): the same dilation in all blocks. At 8: layer3 2; layer4 4. At 16:
      layer4 2. At 4: layer2 2, layer3 4, layer4 8.
    - `multi_grid` (SPNet): contracted, and the dilation of the last stage doubles from block to
      block. At 8: layer4 4, 8, 16.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(
            f"dilation_plan: output_stride must be 4, 8, 16 or 32, got {output_stride}"
        )
    if dilation not in DILATIONS:
        raise ValueError(
            f"dilation_plan: dilation must be one of {', '.join(DILATIONS)}, got {dilation!r}"
        )
    plan, reached, current = [], 4, 1
    for stage, count in enumerate(blocks):
        stride, previous = (1, current) if stage == 0 else (2, current)
        if stride == 2 and reached == output_stride:
            stride, current = 1, 2 * current
        reached *= stride
        each = [current] * count
        if dilation != "uniform":
            each[0] = previous
        if dilation == "multi_grid" and stage == len(blocks) - 1:
            each = [current * 2**block for block in range(count)]
        plan.append(StagePlan(stride, current, tuple(each)))
    return plan


class ResNet(Backbone):
    """ResNet without its classifier.

    Args:
        depth: 18, 34, 50, 101 or 152.
        stem: `7x7`, or three 3x3 convolutions of the widths `64-64-128` (PyTorch-Encoding, SPNet,
            semseg, HANet) or `32-32-64` (mmseg's ResNetV1c).
        output_stride: of the last stage: 32, 16, 8 or 4.
        dilation: `contracted`, `uniform` or `multi_grid`; see `dilation_plan`.
        strip_pooling: whether to add strip pooling, as in SPNet, to the last block of layer1,
            layer2 and layer3 and to every block of layer4. Needs bottlenecks: a depth of 50 or
            more.
        groups, group_width: of the bottlenecks' 3x3 convolutions: 32 and 4 for ResNeXt 32x4d, 1 and
            128 for Wide ResNet, 1 and 64 otherwise. Need bottlenecks, too.
        norm_layer: creates the norms, called with the number of channels.

    Shape:
        (N, 3, H, W) to four maps, at 1/4, 1/8, 1/16 and 1/32 of the image, none smaller than
        1/output_stride, with `channels` channels.

    load_state_dict accepts the layouts of torchvision, semseg, HANet, SPNet, PyTorch-Encoding and
    mmseg; ImageNet's classifier, `fc`, is skipped.

    Examples:
        >>> [tuple(f.shape[1:]) for f in ResNet(18)(torch.randn(1, 3, 64, 64))]
        [(64, 16, 16), (128, 8, 8), (256, 8, 8), (512, 8, 8)]
    """

    def __init__(
        self,
        depth: int,
        *,
        stem: str = "7x7",
        output_stride: int = 8,
        dilation: str = "contracted",
        strip_pooling: bool = False,
        groups: int = 1,
        group_width: int = 64,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"ResNet: depth must be 18, 34, 50, 101 or 152, got {depth}")
        if stem not in STEMS:
            raise ValueError(f"ResNet: stem must be one of {', '.join(STEMS)}, got {stem!r}")
        if strip_pooling and depth < 50:
            raise ValueError(f"ResNet: strip_pooling needs a depth of 50 or more, got {depth}")
        if (groups, group_width) != (1, 64) and depth < 50:
            raise ValueError(f"ResNet: groups need a depth of 50 or more, got {depth}")
        self.stem = _make_stem(STEMS[stem], norm_layer)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        expansion = (BasicBlock if depth < 50 else Bottleneck).expansion
        self.channels = (64 * expansion, 128 * expansion, 256 * expansion, 512 * expansion)
        in_channels, stages = STEMS[stem][-1], []
        for number, plan in enumerate(dilation_plan(BLOCKS[depth], output_stride, dilation)):
            second_dilation = 1 if stem == "32-32-64" else plan.dilation
            count = len(plan.block_dilations)
            gated = range(0 if number == 3 else count - 1, count) if strip_pooling else ()
            channels = self.channels[number]
            bottleneck = {"groups": groups, "group_width": group_width}
            stages.append(
                _make_stage(
                    depth,
                    in_channels,
                    channels,
                    plan,
                    second_dilation,
                    bottleneck,
                    gated,
                    norm_layer,
                )
            )
            in_channels = channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        _initialise(self)
        upstream.accept(self, *upstream.BACKBONE)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.maxpool(self.stem(x))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return tuple(features)


def _make_stem(widths: tuple[int, ...], norm_layer: NormLayer) -> nn.Sequential:
    if len(widths) == 1:
        first: nn.Module = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
    else:
        first = conv3x3(3, widths[0], 2, 1)
    layers = [first, norm_layer(widths[0]), nn.ReLU(inplace=True)]
    for before, width in itertools.pairwise(widths):
        layers += [conv3x3(before, width, 1, 1), norm_layer(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _make_stage(
    depth: int,
    in_channels: int,
    channels: int,
    plan: StagePlan,
    second_dilation: int,
    bottleneck: dict[str, int],
    gated: Sequence[int],
    norm_layer: NormLayer,
) -> nn.Sequential:
    """One stage. `bottleneck` holds groups and group_width; `gated` are the indices of blocks with
    strip pooling."""
    blocks: list[nn.Module] = []
    for index, dilation in enumerate(plan.block_dilations):
        stride = plan.stride if index == 0 else 1
        shortcut = _make_shortcut(in_channels, channels, stride, norm_layer)
        if depth < 50:
            block: nn.Module = BasicBlock(
                in_channels,
                channels,
                stride=stride,
                dilation=dilation,
                second_dilation=second_dilation,
                downsample=shortcut,
                norm_layer=norm_layer,
            )
        else:
            block = Bottleneck(
                in_channels,
                channels // Bottleneck.expansion,
                stride=stride,
                dilation=dilation,
                downsample=shortcut,
                strip_pooling=index in gated,
                norm_layer=norm_layer,
                **bottleneck,
            )
        blocks.append(block)
        in_channels = channels
    return nn.Sequential(*blocks)


def _make_shortcut(
    in_channels: int, channels: int, stride: int, norm_layer: NormLayer
) -> nn.Module | None:
    """A projection if the block changes the shape of its input. The first block of a dilated stage
    has stride 1 but changes the width, so it keeps its projection, as in all upstreams."""
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1, stride, bias=False), norm_layer(channels)
    )


def _initialise(network: nn.Module) -> None:
    """He et al., ICCV 2015, by fan out. Norms and biases keep PyTorch's defaults."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
