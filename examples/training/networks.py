"""Builds the network of a recipe; defines a backbone small enough for a CPU."""

from __future__ import annotations

import inspect
from pathlib import Path

from torch import Tensor, nn

from examples.training import third_party
from examples.training.recipe import Network, RecipeError
from stripctx import models, upstream
from stripctx.models.backbones import TimmBackbone, load_weights


def build(settings: Network, num_classes: int, *, pretrained: bool = True) -> nn.Module:
    """Builds the network that a recipe describes.

    Args:
        settings: the recipe's section `network`.
        num_classes: K.
        pretrained: whether to load the recipe's backbone weights; False if a checkpoint is loaded
            afterwards.

    Raises:
        RecipeError: an option is unknown or invalid, or the weights do not fit.
    """
    if third_party.is_meant(settings.name):
        try:
            return third_party.build(settings, num_classes, pretrained=pretrained)
        except (
            TypeError,
            ValueError,
            OSError,
            KeyError,
            AttributeError,
            RuntimeError,  # weights of another size
            ImportError,  # an optional package is missing
        ) as error:
            said = " ".join(str(error).split())[:300]
            raise RecipeError(f"network: {settings.name}: {said}") from error
    if settings.name not in models.available():
        known = ", ".join(models.available())
        raise RecipeError(
            f"network.name: must be one of {known}, smp:... or transformers:..., "
            f"got {settings.name!r}"
        )
    backbone = TinyBackbone() if settings.backbone == "tiny" else settings.backbone
    try:
        network = models.create(
            settings.name, num_classes=num_classes, backbone=backbone, **settings.options
        )
    except (TypeError, ValueError, OSError, RuntimeError, AssertionError) as error:
        # timm reports an unknown network as RuntimeError.
        raise RecipeError(f"network: {' '.join(str(error).split())}") from error
    if not isinstance(network, models.SegmentationNetwork):
        raise RecipeError(f"network.name: {settings.name} classifies images, not their pixels")
    if pretrained and settings.weights:
        _load(network.backbone, Path(settings.weights).expanduser())
    return network


def _load(backbone: models.Backbone, path: Path) -> None:
    """Loads ImageNet weights into the backbone; files in timm's own layout are accepted too."""
    try:
        entries = upstream.read(path)
        own = "network."  # the prefix of timm's network in TimmBackbone
        if isinstance(backbone, TimmBackbone) and not any(key.startswith(own) for key in entries):
            entries = {own + key: value for key, value in entries.items()}
        load_weights(backbone, entries)
    except FileNotFoundError:
        raise RecipeError(f"network.weights: there is no file {path}") from None
    except Exception as error:  # torch.load documents no exceptions; pickle and zipfile raise many
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RecipeError(f"network.weights: {path} does not fit ({reason})") from None


def describe(network: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in network.parameters())
    named = network.network if isinstance(network, third_party.Adapted) else network
    return f"{type(named).__name__}, {count / 1e6:.2f} M parameters"


def takes_heights(network: nn.Module) -> bool:
    """Whether the network's forward takes the heights of the rows, as HANet's does."""
    return "pos" in inspect.signature(network.forward).parameters


def may_resize(network: nn.Module) -> bool:
    """Whether the network's forward accepts resize=False and then returns logits at the head's
    size."""
    return "resize" in inspect.signature(network.forward).parameters


class TinyBackbone(models.Backbone):
    """Five convolutions to 1/4 of the image's size, for demos and tests: 0.03 M parameters. The
    receptive field is 15 x 15 pixels, so longer-range context is left to the head.

    Shape:
        (N, 3, H, W) to four maps at 1/4 of the size, with 32, 48, 64 and 96 channels.
    """

    channels = (32, 48, 64, 96)

    def __init__(self) -> None:
        super().__init__()
        before = self.channels[0]
        self.stem = _unit(3, before, 3, stride=2)
        self.stages = nn.ModuleList()
        for width, kernel, stride in zip(self.channels, (3, 3, 1, 1), (2, 1, 1, 1), strict=True):
            self.stages.append(_unit(before, width, kernel, stride=stride))
            before = width

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return tuple(features)


def _unit(inputs: int, outputs: int, kernel: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
