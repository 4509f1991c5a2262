"""The network of a recipe, and a backbone small enough for a CPU."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from examples.training.recipe import Network, RecipeError
from stripctx import models


def build(settings: Network, num_classes: int, *, pretrained: bool = True) -> nn.Module:
    """The network that a recipe describes.

    Args:
        settings: the recipe's section.
        num_classes: K.
        pretrained: whether to load the backbone's weights that the recipe names; not where a
            checkpoint follows.

    Raises:
        RecipeError: an option that the network does not know or refuses.
    """
    if settings.name not in models.available():
        known = ", ".join(models.available())
        raise RecipeError(f"network.name: must be one of {known}, got {settings.name!r}")
    backbone = TinyBackbone() if settings.backbone == "tiny" else settings.backbone
    weights = settings.weights if pretrained and settings.weights else None
    try:
        network = models.create(
            settings.name,
            num_classes=num_classes,
            backbone=backbone,
            backbone_weights=weights,
            **settings.options,
        )
    except (TypeError, ValueError, OSError) as error:
        raise RecipeError(f"network: {error}") from error
    if not isinstance(network, models.SegmentationNetwork):
        raise RecipeError(f"network.name: {settings.name} classifies images, not their pixels")
    return network


def describe(network: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in network.parameters())
    return f"{type(network).__name__}, {count / 1e6:.2f} M parameters"


def takes_heights(network: nn.Module) -> bool:
    """Whether the network's forward wants the rows' heights, as HANet's does."""
    return "pos" in inspect.signature(network.forward).parameters


class TinyBackbone(models.Backbone):
    """Nine convolutions to 1/8 of the image's size, 0.26 M parameters: for demos and tests.

    Shape:
        (N, 3, H, W) to four maps, of 32, 48, 64 and 96 channels at 1/4, 1/8, 1/8 and 1/8.
    """

    channels = (32, 48, 64, 96)

    def __init__(self) -> None:
        super().__init__()
        before = self.channels[0]
        self.stem = _unit(3, before, stride=2)
        self.stages = nn.ModuleList()
        for width, stride, rate in zip(self.channels, (2, 2, 1, 1), (1, 1, 2, 2), strict=True):
            first = _unit(before, width, stride=stride, dilation=rate)
            self.stages.append(nn.Sequential(first, _unit(width, width, dilation=rate)))
            before = width

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return tuple(features)


def _unit(inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
