"""Small networks of every kind, for the tests of stripctx.models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operator_checks import DEVICE
from torch import Tensor, nn

from stripctx import models


class Tiny(models.Backbone):
    """Four convolutions, for tests of heads."""

    channels = (8, 16, 32, 64)

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (3, *self.channels), (4, 2, 1, 1)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b, stride in zip(widths, self.channels, strides, strict=False)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return tuple(features)


# Every network with all of its options except strip pooling, which Tiny and ResNet-18 do not
# support.
OPTIONS: dict[str, dict[str, Any]] = {
    "deepten": {"num_codes": 4, "channels": 8},
    "fcn": {},
    "deeplabv3plus_hanet": {"slots": [True] * 5},
    "encnet": {"lateral": True, "se_stage3": True, "num_codes": 4, "head_channels": 16},
    "pspnet": {"head_channels": 16},
    "spnet": {"pool_sizes": (5, 3), "strip_pooling": False},
    "upernet": {"head_channels": 16, "aux_channels": 8},
}
GLOBAL_NORMS = (
    "deeplabv3plus_hanet",
    "pspnet",
    "upernet",
)  # these normalise a 1x1 map, which requires two images
every_network = pytest.mark.parametrize("name", OPTIONS)
every_segmentation = pytest.mark.parametrize("name", sorted(OPTIONS.keys() - {"deepten"}))


def make(name: str, backbone: str | None = None) -> nn.Module:
    network = models.create(name, num_classes=5, backbone=backbone or Tiny(), **OPTIONS[name])
    return network.to(DEVICE)


def image(*size: int) -> Tensor:
    return torch.randn(size, device=DEVICE)


def undropped(network: nn.Module) -> nn.Module:
    """Disables dropout, so that two runs agree."""
    for module in network.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    return network


def as_dict(outputs: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """A segmentation network's outputs; a classifier's output as a dictionary too."""
    return {"out": outputs} if isinstance(outputs, Tensor) else outputs
