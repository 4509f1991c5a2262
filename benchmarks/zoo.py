"""The networks of benchmarks.networks, created by their packages with random weights. The tiny
variants have the same layers with few channels.

Each function takes `tiny` and imports its package.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import packages
from stripctx import PyramidPoolingConv, models

CLASSES = 19  # Cityscapes
TINY_WIDTHS = [8, 16, 24, 32]


def segformer(tiny: bool, **sizes: Any) -> nn.Module:
    """SegFormer of transformers; its default configuration is B0."""
    transformers = importlib.import_module("transformers")
    if tiny:
        sizes = {
            "depths": [1] * 4,
            "hidden_sizes": TINY_WIDTHS,
            "num_attention_heads": [1, 1, 2, 2],
            "decoder_hidden_size": 16,
        }
    config = transformers.SegformerConfig(num_labels=CLASSES, **sizes)
    return transformers.SegformerForSemanticSegmentation(config)


def segformer_b2(tiny: bool) -> nn.Module:
    return segformer(
        tiny, depths=[3, 4, 6, 3], hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768
    )


def upernet_convnext(tiny: bool) -> nn.Module:
    """UPerNet of transformers; its default ConvNeXt is the tiny one."""
    transformers = importlib.import_module("transformers")
    small: dict[str, Any] = {"hidden_sizes": TINY_WIDTHS if tiny else [96, 192, 384, 768]}
    if tiny:
        small["depths"] = [1] * 4
    backbone = transformers.ConvNextConfig(
        out_features=["stage1", "stage2", "stage3", "stage4"], **small
    )
    widths = {"hidden_size": 16, "auxiliary_channels": 8} if tiny else {}
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        num_labels=CLASSES,
        auxiliary_in_channels=backbone.hidden_sizes[2],
        **widths,
    )
    return transformers.UperNetForSemanticSegmentation(config)


def smp(name: str, encoder: str, tiny: bool, **options: Any) -> nn.Module:
    kind = getattr(packages.load("segmentation_models_pytorch"), name)
    encoder = "tu-resnet10t" if tiny else encoder
    return kind(encoder, encoder_weights=None, classes=CLASSES, **options)


def unet(tiny: bool) -> nn.Module:
    return smp("Unet", "tu-resnet18", tiny, decoder_interpolation="bilinear")


def upernet(tiny: bool) -> nn.Module:
    return smp("UPerNet", "tu-resnet34", tiny, decoder_channels=16 if tiny else 512)


class HRNet(nn.Module):
    """timm's HRNet backbone with its authors' head: all maps interpolated to the finest,
    concatenated, and two 1x1 convolutions (Wang et al., TPAMI 2020)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        together = sum(backbone.feature_info.channels())  # type: ignore[union-attr, operator]
        self.last_layer = nn.Sequential(
            nn.Conv2d(together, together, 1),
            nn.BatchNorm2d(together),
            nn.ReLU(inplace=True),
            nn.Conv2d(together, CLASSES, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        finest, *others = self.backbone(image)
        size = finest.shape[2:]
        maps = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in others]
        logits: Tensor = self.last_layer(torch.cat([finest, *maps], 1))
        return logits


def hrnet(tiny: bool) -> nn.Module:
    timm = packages.load("timm")
    name = "hrnet_w18_small" if tiny else "hrnet_w18"
    options = {"features_only": True, "feature_location": "", "out_indices": (1, 2, 3, 4)}
    return HRNet(timm.create_model(name, **options))


class Pyramid(nn.Module):
    """Pyramid pooling and its convolution in plain PyTorch, with the parameters of our layer."""

    def __init__(self, layer: PyramidPoolingConv) -> None:
        super().__init__()
        self.bins, self.branches, self.conv = layer.bins, layer.branches, layer.conv

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for bins, branch in zip(self.bins, self.branches, strict=True):
            level = branch(F.adaptive_avg_pool2d(x, bins))
            maps.append(F.interpolate(level, x.shape[2:], mode="bilinear", align_corners=True))
        out: Tensor = self.conv(torch.cat(maps, 1))
        return out


def pspnet(tiny: bool) -> nn.Module:
    """Our PSPNet with its head in plain PyTorch."""
    network = models.pspnet(CLASSES, "resnet18" if tiny else "resnet50", aux=False)
    head = cast(nn.Sequential, network.head)
    head[0] = Pyramid(cast(PyramidPoolingConv, head[0]))
    return network


NETWORKS: dict[str, Callable[[bool], nn.Module]] = {
    "SegFormer-B0, transformers": segformer,
    "SegFormer-B2, transformers": segformer_b2,
    "UperNet ConvNeXt-T, transformers": upernet_convnext,
    "UPerNet ResNet-34, smp": upernet,
    "U-Net ResNet-18, smp": unet,
    "HRNet-W18, timm": hrnet,
    "PSPNet ResNet-50, plain PyTorch": pspnet,
}
