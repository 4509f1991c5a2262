"""PSPNet: its formula, sizes and options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import battery
import pytest
import torch
import torch.nn.functional as F
from checkpoints import randomise
from networks import Tiny
from torch import nn

from stripctx import models


@pytest.mark.parametrize(("zoom_factor", "size"), [(1, (9, 7)), (2, (17, 13)), (4, (33, 25))])
def test_pspnet_zoom(zoom_factor: int, size: tuple[int, int]) -> None:
    network = models.pspnet(5, Tiny(), head_channels=16, zoom_factor=zoom_factor)
    outputs = network(torch.randn(2, 3, 65, 49))
    assert {y.shape[2:] for y in outputs.values()} == {size}


def test_pspnet_is_plain() -> None:
    """The whole network against its formula in plain PyTorch, the pyramid built."""
    network = randomise(models.pspnet(5, Tiny(), head_channels=16)).double().eval()
    x = torch.randn(2, 3, 65, 49, dtype=torch.float64)
    y = network.backbone(x)[-1]
    pyramid, *rest = network.head
    parts = [y]
    for size, branch in zip((1, 2, 3, 6), pyramid.branches, strict=True):
        level = branch(F.adaptive_avg_pool2d(y, size))
        parts.append(F.interpolate(level, y.shape[2:], mode="bilinear", align_corners=True))
    logits = nn.Sequential(*rest)(pyramid.conv(torch.cat(parts, 1)))
    want = F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)
    assert battery.relative_error(network(x)["out"], want) < 1e-12


def test_pspnet_trains_on_one_image() -> None:
    network = models.pspnet(5, Tiny(), head_channels=16, global_norm=False)
    network(torch.randn(1, 3, 32, 32))["out"].sum().backward()
    assert all(p.grad.isfinite().all() for p in network.head.parameters())


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: models.pspnet(0, Tiny()), "pspnet: num_classes must be positive, got 0"),
    (lambda: models.pspnet(3, Tiny(), zoom_factor=3), "zoom_factor must be 1, 2, 4 or 8, got 3"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_refuses(call: Callable[[], Any], words: str) -> None:
    battery.raises(ValueError, words, call)
