"""Creates backbones by name and loads their ImageNet weights."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stripctx import upstream
from stripctx.models.mobilenet import MobileNetV2
from stripctx.models.network import Backbone, NormLayer
from stripctx.models.resnet import BLOCKS, ResNet

Weights = str | os.PathLike[str] | Mapping[str, Any]

_STEM_OF_SUFFIX = {"": "7x7", "s": "64-64-128", "c": "32-32-64"}
# torchvision's names: depth, groups and their width.
_GROUPED = {
    "resnext50_32x4d": (50, 32, 4),
    "resnext101_32x8d": (101, 32, 8),
    "wide_resnet50_2": (50, 1, 128),
    "wide_resnet101_2": (101, 1, 128),
}
_TIMM = "timm:"


def create_backbone(
    backbone: str | Backbone,
    *,
    weights: Weights | None = None,
    output_stride: int = 8,
    dilation: str = "contracted",
    strip_pooling: bool = False,
    norm_layer: NormLayer = nn.BatchNorm2d,
) -> Backbone:
    """Creates a backbone by name.

    Args:
        backbone: one of

            - `resnet18`, 34, 50, 101 or 152, with the 7x7 stem; with the suffix `s` (`resnet50s`)
              the deep stem 64-64-128 of PyTorch-Encoding, SPNet and semseg, with `c` the stem
              32-32-64 of mmseg's ResNetV1c;
            - `resnext50_32x4d`, `resnext101_32x8d`, `wide_resnet50_2`, `wide_resnet101_2`;
            - `mobilenet_v2`;
            - `timm:NAME`, any network of the timm library that returns features
              (`pip install stripctx[timm]`);
            - a Backbone, used as it is.
        weights: the path of a checkpoint, read with weights_only, or a state_dict, in the layout of
            torchvision, semseg, PyTorch-Encoding, mmseg or stripctx. ImageNet's classifier is
            skipped, and strip pooling modules missing from the file keep their initial values; any
            other mismatch is an error.
        output_stride, dilation, strip_pooling, norm_layer: see `ResNet`. MobileNetV2 has its own
            dilation scheme, timm's networks their own norms. Strip pooling needs a ResNet.

    Returns:
        A module from an image (N, 3, H, W) to the features of four stages, finest first.

    Raises:
        ValueError: for an unknown name or weights that do not fit.

    Examples:
        >>> create_backbone("resnet50s", output_stride=16).channels
        (256, 512, 1024, 2048)
    """
    if isinstance(backbone, Backbone):
        network = backbone
    elif backbone == "mobilenet_v2" or backbone.startswith(_TIMM):
        if strip_pooling:
            raise ValueError(f"create_backbone: strip_pooling needs a ResNet, got {backbone!r}")
        network = (
            TimmBackbone(backbone[len(_TIMM) :], output_stride=output_stride)
            if backbone.startswith(_TIMM)
            else MobileNetV2(output_stride=output_stride, norm_layer=norm_layer)
        )
    else:
        depth, stem, groups, group_width = _parts(backbone)
        network = ResNet(
            depth,
            stem=stem,
            output_stride=output_stride,
            dilation=dilation,
            strip_pooling=strip_pooling,
            groups=groups,
            group_width=group_width,
            norm_layer=norm_layer,
        )
    if weights is not None:
        load_weights(network, weights)
    return network


def _parts(name: str) -> tuple[int, str, int, int]:
    """Depth, stem, groups and group width from the name of a ResNet."""
    if name in _GROUPED:
        depth, groups, group_width = _GROUPED[name]
        return depth, "7x7", groups, group_width
    match = re.fullmatch(r"resnet(\d+)([sc]?)", name)
    if match is None or int(match[1]) not in BLOCKS:
        raise ValueError(
            "create_backbone: backbone must be resnet18, 34, 50, 101 or 152, with the suffix s or "
            f"c for a deep stem, {', '.join(_GROUPED)}, mobilenet_v2 or timm:NAME, got {name!r}"
        )
    return int(match[1]), _STEM_OF_SUFFIX[match[2]], 1, 64


def load_weights(backbone: Backbone, weights: Weights) -> None:
    """Loads `weights`; see `create_backbone`."""
    result = backbone.load_state_dict(upstream.read(weights), strict=False)
    missing = [key for key in result.missing_keys if ".spm." not in key]
    for keys, problem in (
        (missing, "are missing"),
        (result.unexpected_keys, "are none of its own"),
    ):
        if keys:
            raise ValueError(
                f"load_weights: weights must fit {type(backbone).__name__}: "
                f"{len(keys)} entries {problem}, {', '.join(keys[:4])}"
            )


class TimmBackbone(Backbone):
    """The last four feature maps of a network of the timm library, without pretrained weights.

    Images may have any size: for networks that need whole patches, such as transformers and HRNet,
    they are padded with zeros at the right and bottom.

    Args:
        name: timm's name, such as `convnext_tiny`. The network must have at least four feature
            maps.
        output_stride: of the last map. 32 takes a network as it is, including those that timm
            cannot dilate (Swin, PVT, HRNet, VGG, ViT, DenseNet), whose last map may have another
            stride.
    """

    def __init__(self, name: str, *, output_stride: int = 32) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(
                f"TimmBackbone: output_stride must be 8, 16 or 32, got {output_stride}"
            )
        try:
            timm = importlib.import_module("timm")
        except ImportError as error:
            raise ValueError(
                f"TimmBackbone: name {name!r} needs the timm library: pip install stripctx[timm]"
            ) from error
        try:
            self.network, self.patch = _features(timm, name, output_stride)
        except (TypeError, AssertionError) as error:
            if output_stride == 32:
                raise
            raise ValueError(
                f"TimmBackbone: output_stride must be 32 for {name!r}, which timm does not dilate, "
                f"got {output_stride}; its maps then have the strides of its own"
            ) from error
        first, second, third, fourth = self.network.feature_info.channels()
        self.channels = (first, second, third, fourth)
        self.channels_are_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.patch > 1:
            x = F.pad(x, (0, -x.shape[3] % self.patch, 0, -x.shape[2] % self.patch))
        features = self.network(x)
        if self.channels_are_last:
            features = [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
        return tuple(features)


def _features(timm: Any, name: str, output_stride: int) -> tuple[Any, int]:
    """timm's network, and the number that its image sides must be multiples of. Transformers accept
    other image sizes only with an option, which differs for Swin and ViT; HRNet adds maps of all
    its strides."""
    options: dict[str, Any] = {"features_only": True, "out_indices": (-4, -3, -2, -1)}
    if output_stride != 32:
        options["output_stride"] = output_stride
    try:
        network = timm.create_model(name, strict_img_size=False, **options)
        return network, int(network.feature_info.reduction()[0])
    except TypeError:  # the network has no such option
        pass
    try:
        return timm.create_model(name, dynamic_img_size=True, dynamic_img_pad=True, **options), 1
    except TypeError:
        pass
    network = timm.create_model(name, **options)
    adds_strides = type(network).__name__.startswith("HighResolutionNet")
    return network, int(network.feature_info.reduction()[-1]) if adds_strides else 1
