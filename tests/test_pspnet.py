"""PSPNet: its formula, sizes and options."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import operator_checks
import pytest
import torch
import torch.nn.functional as F
from checkpoints import randomise
from networks import Tiny, undropped
from torch import nn

from stripctx import models


@pytest.mark.parametrize(("zoom_factor", "size"), [(1, (9, 7)), (2, (17, 13)), (4, (33, 25))])
def test_pspnet_zoom(zoom_factor: int, size: tuple[int, int]) -> None:
    network = models.pspnet(5, Tiny(), head_channels=16, zoom_factor=zoom_factor)
    outputs = network(torch.randn(2, 3, 65, 49))
    assert {y.shape[2:] for y in outputs.values()} == {size}


def test_pspnet_equals_plain() -> None:
    """The whole network against its formula in plain PyTorch, which materialises the pyramid."""
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
    assert operator_checks.relative_error(network(x)["out"], want) < 1e-12


def test_aspp_equals_plain() -> None:
    """Against the concatenation with the mean expanded; in training, to compare gradients."""
    network = models.pspnet(5, Tiny(), head_channels=16, context="aspp", rates=(1, 2, 5))
    network = undropped(randomise(network)).double()
    other = copy.deepcopy(network)
    x = torch.randn(2, 3, 65, 49, dtype=torch.float64)
    y = other.backbone(x)[-1]
    head: Any = other.head
    aspp, conv = head[0].children()
    parts = [aspp.img_conv(F.adaptive_avg_pool2d(y, 1)).expand(-1, -1, *y.shape[2:])]
    parts += [feature(y) for feature in aspp.features]
    logits = head[1:](conv(torch.cat(parts, 1)))
    want = F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)
    got = network(x)["out"]
    assert operator_checks.relative_error(got, want) < 1e-12
    got.square().sum().backward()
    want.square().sum().backward()
    for (key, a), b in zip(network.head.named_parameters(), other.head.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key, rtol=1e-9, atol=1e-9)


def test_aspp_exports() -> None:
    network = models.pspnet(5, Tiny(), head_channels=16, context="aspp", rates=(1, 2, 5)).eval()
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 96)
        program = torch.export.export(network, (x,), dynamic_shapes=(sizes,)).module()
        for size in ((64, 96), (65, 77)):
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(program(x)["out"], network(x)["out"])


def test_aspp_rates() -> None:
    with torch.device("meta"):
        network = models.pspnet(5, "resnet18", context="aspp", output_stride=16)
    features = network.head[0].aspp.features
    assert [f[0].dilation[0] for f in features] == [1, 6, 12, 18]
    assert network.head[0].conv.weight.shape == (512, 1280, 3, 3)


@pytest.mark.parametrize("context", ["pyramid", "aspp"])
def test_pspnet_trains_on_one_image(context: str) -> None:
    network = models.pspnet(5, Tiny(), head_channels=16, context=context, global_norm=False)
    network(torch.randn(1, 3, 32, 32))["out"].sum().backward()
    assert all(p.grad.isfinite().all() for p in network.head.parameters())


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: models.pspnet(0, Tiny()), "pspnet: num_classes must be positive, got 0"),
    (lambda: models.pspnet(3, Tiny(), context="psp"), 'context must be "pyramid" or "aspp"'),
    (lambda: models.pspnet(3, Tiny(), context="aspp", rates=(1, 2)), "pspnet: rates must be three"),
    (lambda: models.pspnet(3, Tiny(), zoom_factor=3), "zoom_factor must be 1, 2, 4 or 8, got 3"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_refuses(call: Callable[[], Any], words: str) -> None:
    operator_checks.raises(ValueError, words, call)
