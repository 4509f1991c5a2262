"""SPNet: the positions of strip pooling, and the paper's ablations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import operator_checks
import pytest
import torch
from networks import Tiny

from stripctx import StripPooling, models


def test_spnet_variants() -> None:
    with torch.device("meta"):
        network = models.spnet(5, "resnet50s")
        gated = [key for key, m in network.named_modules() if isinstance(m, StripPooling)]
        places = ("1.2", "2.3", "3.5", "4.0", "4.1", "4.2")
        assert gated == [f"backbone.layer{place}.spm" for place in places]
        assert [b.conv2.dilation[0] for b in network.backbone.layer4] == [4, 8, 16]
        assert [b.conv2.dilation[0] for b in network.backbone.layer3] == [1, 2, 2, 2, 2, 2]
        plain = models.spnet(5, "resnet50s", strip_pooling=False)
        assert not any(isinstance(m, StripPooling) for m in plain.modules())
    assert len(models.spnet(5, Tiny(), mixed=0).head.mixed) == 0
    options = {"mixed": 1, "arms": "long", "pooling": "global", "pool_sizes": ((3, 2), 5)}
    one = models.spnet(5, Tiny(), **options).eval()
    assert [(m.arms, m.pooling) for m in one.head.mixed] == [("long", "global")]
    assert one(torch.randn(1, 3, 32, 40))["out"].shape == (1, 5, 32, 40)
    two = models.spnet(5, Tiny(), arms=("short", "both"), pooling=("strip", "global"))
    assert [(m.arms, m.pooling) for m in two.head.mixed] == [("short", "strip"), ("both", "global")]


def test_every_parameter_trains() -> None:
    """Including those of the strip pooling modules in the backbone."""
    network = models.spnet(5, "resnet50s", pool_sizes=(3, 2))
    network(torch.randn(2, 3, 33, 41))["out"].square().sum().backward()
    for key, parameter in network.named_parameters():
        if not key.startswith("aux_head"):
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
            assert key.endswith("bias") or parameter.grad.any(), key
        else:
            assert parameter.grad is None


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: models.spnet(3, Tiny(), mixed=9), "spnet: mixed must be from 0 to 8, got 9"),
    (lambda: models.spnet(3, "resnet18"), "strip_pooling needs a depth of 50 or more, got 18"),
    (lambda: models.spnet(3, Tiny(), arms="none"), "arms must be one of both, short, long"),
    (
        lambda: models.spnet(3, Tiny(), arms=("long",)),
        "spnet: arms must be one value or one for each of 2 modules, got ('long',)",
    ),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_refuses(call: Callable[[], Any], words: str) -> None:
    operator_checks.raises(ValueError, words, call)
