"""The replacements for upstream's code on the pages in docs/layers compute the same: both columns
are executed with upstream's parameters. mmseg and smp are used if installed; other upstreams are
represented by the modules of tests/upstream_models.py.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import oracles
import pytest
import torch
import upstream_models
from checkpoints import randomise
from torch import nn

LAYERS = sorted((Path(__file__).resolve().parent.parent / "docs" / "layers").glob("*.md"))

# Upstreams that cannot be installed, from tests/upstream_models.py, with BatchNorm2d norms.
UPSTREAMS: dict[str, dict[str, Any]] = {
    "models.resnet": {"SPBlock": upstream_models.SPBlock},
    "models.customize": {
        "StripPooling": lambda channels, sizes, _, up: upstream_models.StripPooling(
            channels, sizes, up
        )
    },
    "network.HANet": {"HANet_Conv": upstream_models.HANet_Conv},
    "model.pspnet": {"PPM": upstream_models.PPM},
    "encoding.nn": {
        "Encoding": upstream_models.Encoding,
        "PyramidPooling": lambda channels, _, up: upstream_models.PyramidPooling(channels, up),
    },
    "encoding.models.sseg.encnet": {
        "EncModule": lambda channels, classes, ncodes, norm_layer: upstream_models.EncModule(
            channels, classes, ncodes
        )
    },
}
RESULTS = ("encoded", "features", "logits", "out", "x", "y")


def replacements() -> list[tuple[Path, list[str], list[str]]]:
    """The pages, upstream's lines, and their replacements."""
    rows: list[Any] = []
    for page in LAYERS:
        found = re.findall(r"^\| (`from .+`) \| (`from .+`) \|$", page.read_text(), re.MULTILINE)
        assert found, f"{page.name} has no replacement"
        rows += [(page, *(re.findall(r"`([^`]+)`", cell) for cell in row)) for row in found]
    return rows


def run(lines: list[str], names: dict[str, Any], *, results: bool) -> None:
    """Executes the lines that create modules, or those that compute results."""
    for line in lines:
        if (re.split(r"\W", line)[0] in RESULTS) == results:
            exec(line, names)


def made(lines: list[str], names: dict[str, Any]) -> dict[str, nn.Module]:
    """The modules that the lines create, in evaluation mode and float64."""
    run(lines, names, results=False)
    modules = {name: value for name, value in names.items() if isinstance(value, nn.Module)}
    return {name: module.eval().double() for name, module in modules.items()}


def load(here: dict[str, nn.Module], upstream: dict[str, nn.Module]) -> None:
    """Loads upstream's parameters; keys of a second module are prefixed with its name. If ours is a
    convolution followed by a norm, as for UPerNet, each is loaded separately."""
    main, *beside = upstream
    state = dict(randomise(upstream[main]).state_dict())
    for name in beside:
        state |= {f"{name}.{key}": value for key, value in upstream[name].state_dict().items()}
    first = next(iter(here))
    if first != main:
        keys = [key for key in state if key.startswith("out_conv.1.")]
        norm = {key.removeprefix("out_conv.1."): state.pop(key) for key in keys}
        here[main][1].load_state_dict(norm)
    here[first].load_state_dict(state)


@pytest.mark.parametrize(
    ("page", "before", "after"), replacements(), ids=[row[1][0] for row in replacements()]
)
def test_replacements_compute_the_same(
    page: Path, before: list[str], after: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With upstream's parameters, loaded strictly, the lines on the right compute the same as those
    on the left."""
    for name, contents in UPSTREAMS.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    if "mmseg" in before[0]:
        oracles.mmseg()
    if "segmentation_models_pytorch" in before[0]:
        oracles.smp()
    channels = {"encoding_layer": 128, "height_attention": 256, "mixed_pooling": 1024}
    given = {
        "act_cfg": {"type": "ReLU"},
        "conv_cfg": None,
        "nn": nn,
        "norm_cfg": {"type": "BN"},
        "norm_layer": nn.BatchNorm2d,
        "out": torch.randn(2, 512, 5, 6).double(),
        "pos_h": torch.randint(128, (2, 5, 6)),
        "pos_w": None,
        "rest": [nn.ReLU()],
        "torch": torch,
        "up_kwargs": {"mode": "bilinear", "align_corners": True},
        "x": torch.randn(2, channels.get(page.stem, 512), 5, 6).double(),
    }
    theirs, ours = dict(given), dict(given)
    upstream, here = made(before, theirs), made(after, ours)
    load(here, upstream)
    run(before, theirs, results=True)
    run(after, ours, results=True)
    changed = [name for name in RESULTS if ours.get(name) is not given.get(name)]
    pairs = [(ours[name], theirs[name]) for name in changed]
    main = next(iter(upstream))
    for got, want in pairs or [(here[main](given["x"]), upstream[main](given["x"]))]:
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
