"""MobileNetV2 (Sandler et al., CVPR 2018), with the stages and dilations of HANet's code."""

from __future__ import annotations

from torch import Tensor, nn

from stripctx import upstream
from stripctx.models.network import Backbone, NormLayer

OUTPUT_STRIDES = (8, 16, 32)
# The inverted residuals, as in the paper's table 2: expansion, channels, number, first stride.
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# stages as ranges of torchvision's `features`
_STAGES = ((0, 2), (2, 7), (7, 11), (11, 18), (18, 19))


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a depthwise 3x3 convolution, a 1x1 projection, and a shortcut if the shape
    stays the same. The key names are torchvision's."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expansion: int,
        stride: int,
        dilation: int,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        width = expansion * in_channels
        wider = [_unit(in_channels, width, 1, norm_layer)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *wider,
            _unit(width, width, 3, norm_layer, stride=stride, dilation=dilation, groups=width),
            nn.Conv2d(width, out_channels, 1, bias=False),
            norm_layer(out_channels),
        )
        self.keeps_shape = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.keeps_shape else self.conv(x)


class MobileNetV2(Backbone):
    """MobileNetV2 without its classifier.

    The stages are HANet's: 32 channels at 1/8 of the image, 64 at 1/16, 320 at 1/32, and the last
    1x1 convolution to 1280. For a smaller `output_stride`, each convolution that loses its stride
    is dilated, the first by 2 and the second by 4; the convolutions after it are not dilated, as in
    HANet's released code.

    Args:
        output_stride: of the last two stages: 8, 16 or 32.
        norm_layer: creates the norms, called with the number of channels.

    load_state_dict accepts the layouts of torchvision and HANet; ImageNet's classifier is skipped.

    Examples:
        >>> [tuple(f.shape[1:]) for f in MobileNetV2()(torch.randn(1, 3, 64, 64))]
        [(32, 8, 8), (64, 4, 4), (320, 4, 4), (1280, 4, 4)]
    """

    channels = (32, 64, 320, 1280)

    def __init__(self, *, output_stride: int = 16, norm_layer: NormLayer = nn.BatchNorm2d) -> None:
        super().__init__()
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"MobileNetV2: output_stride must be 8, 16 or 32, got {output_stride}")
        before, reached, lost = 32, 2, 1
        features: list[nn.Module] = [_unit(3, before, 3, norm_layer, stride=2)]
        for expansion, width, count, first_stride in BLOCKS:
            for index in range(count):
                stride, dilation = first_stride if index == 0 else 1, 1
                if stride == 2 and reached == output_stride:
                    lost *= 2
                    stride, dilation = 1, lost
                reached *= stride
                features.append(
                    InvertedResidual(
                        before,
                        width,
                        expansion=expansion,
                        stride=stride,
                        dilation=dilation,
                        norm_layer=norm_layer,
                    )
                )
                before = width
        features.append(_unit(before, self.channels[3], 1, norm_layer))
        self.stem, self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(*features[start:end]) for start, end in _STAGES
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        upstream.accept(self, *_LAYOUTS)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return tuple(features)


def _unit(
    inputs: int,
    outputs: int,
    kernel: int,
    norm_layer: NormLayer,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    conv = nn.Conv2d(
        inputs,
        outputs,
        kernel,
        stride,
        padding=kernel // 2 * dilation,
        dilation=dilation,
        groups=groups,
        bias=False,
    )
    return nn.Sequential(conv, norm_layer(outputs), nn.ReLU6(inplace=True))


_NAMES = ("stem", "layer1", "layer2", "layer3", "layer4")
_LAYOUTS = (
    upstream.Layout(
        "torchvision",
        r"features\.",
        (
            *(
                (rf"features\.{start + index}\.", f"{name}.{index}.")
                for name, (start, end) in zip(_NAMES, _STAGES, strict=True)
                for index in range(end - start)
            ),
            (r"classifier\.", None),
        ),
    ),
    upstream.Layout("HANet's networks", r"layer0\.", ((r"layer0\.", "stem."),)),
)
