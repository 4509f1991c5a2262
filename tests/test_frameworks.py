"""Training with other frameworks: the blocks of docs/guides/frameworks.md; mmseg's registry."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import oracles
import pytest
import torch
from operator_checks import DEVICE
from torch import nn

import stripctx.mmseg

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guides" / "frameworks.md"
SETUP, *BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
NEEDS = {
    "Lightning": ("lightning",),
    "Trainer": ("transformers", "accelerate"),
    "accelerate": ("accelerate",),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "block"), list(zip(NEEDS, BLOCKS, strict=True)))
def test_the_guides_examples_run(
    name: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in NEEDS[name]:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(SETUP, PAGE.name, "exec"), names)
    network = names["network"]
    assert isinstance(network, nn.Module)
    before = [one.detach().clone() for one in network.parameters()]
    exec(compile(block, PAGE.name, "exec"), names)
    trained = names.get("segformer", names["network"])
    assert isinstance(trained, nn.Module)
    assert all(torch.isfinite(one).all() for one in trained.parameters())
    if name != "Trainer":
        after = list(network.parameters())
        assert any(not torch.equal(a, b.cpu()) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", stripctx.mmseg.HEADS)
@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_heads_of_mmseg(name: str, norm: str) -> None:
    registry = oracles.mmseg().MODELS
    assert name in stripctx.mmseg.register() == stripctx.mmseg.register()
    options = {"num_groups": 2} if norm == "GN" else {}
    head = registry.build(
        {
            "type": name, "in_channels": 12, "channels": 8, "num_classes": 3,
            "align_corners": False, "norm_cfg": {"type": norm, **options},
        }
    ).to(DEVICE)  # fmt: skip
    logits = head([torch.randn(2, 12, 9, 7, device=DEVICE)])
    assert logits.shape == (2, 3, 9, 7)
    logits.sum().backward()
    kind = nn.GroupNorm if norm == "GN" else nn.BatchNorm2d
    assert any(isinstance(module, kind) for module in head.modules())


def test_norm_cfg_of_a_layer() -> None:
    oracles.mmseg()
    norm = stripctx.mmseg.norm_layer({"type": "BN", "eps": 0.5, "requires_grad": False})
    layer = stripctx.StripPooling(4, norm_layer=norm)
    assert layer.bn1.eps == 0.5 and not layer.bn1.weight.requires_grad
