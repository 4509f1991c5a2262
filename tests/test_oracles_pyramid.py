"""Pyramid pooling against mmseg's and smp's modules, in float64: outputs, gradients of the input
and of all parameters, and the statistics of the norms. Ours load their weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import operator_checks
import oracles
import pytest
import torch
from checkpoints import randomise
from operator_checks import DEVICE, FORMATS
from torch import Tensor, nn

from stripctx import PyramidPooling, PyramidPoolingConv, functional

BINS = (1, 2, 3, 6)
NORM = {"norm_cfg": {"type": "BN", "requires_grad": True}}


class Called(nn.Module):
    """One or more modules, called by a given function."""

    def __init__(self, call: Callable[[Tensor], Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.call = call
        self.parts = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def mmseg_pyramid(align_corners: bool, **norm: Any) -> nn.Module:
    """mmseg's PPM, followed by its head's concatenation of x and the maps."""
    options = {"norm_cfg": None, "conv_cfg": None, "act_cfg": {"type": "ReLU"}} | norm
    pyramid = oracles.mmseg().PPM(BINS, 8, 3, align_corners=align_corners, **options)
    return Called(lambda x: torch.cat([x, *pyramid(x)], 1), pyramid)


def functions(layer: PyramidPooling) -> nn.Module:
    """A layer's branches between `functional.pyramid_pool` and `functional.pyramid_concat`."""
    options = {"align_corners": layer.align_corners, "x_index": layer.x_index}

    def call(x: Tensor) -> Tensor:
        pooled = functional.pyramid_pool(x, BINS)
        levels = [b(level) for b, level in zip(layer.branches, pooled, strict=True)]
        return functional.pyramid_concat(x, levels, **options)

    return Called(call, layer)


# Each pair: the upstream module, and our layer that should equal it.
WIDTH = {"branch_channels": 3}
PYRAMIDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], PyramidPooling]]] = {
    "mmseg": (
        lambda: mmseg_pyramid(False, **NORM),
        lambda: PyramidPooling(8, **WIDTH, align_corners=False),
    ),
    "mmseg-align-corners": (
        lambda: mmseg_pyramid(True, **NORM),
        lambda: PyramidPooling(8, **WIDTH),
    ),
    "mmseg-no-norm": (
        lambda: mmseg_pyramid(False),
        lambda: PyramidPooling(8, **WIDTH, align_corners=False, norm_layer=None),
    ),
    "smp": (
        lambda: oracles.smp().PSPModule(8),
        lambda: PyramidPooling(8, x_first=False, global_norm=False),
    ),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:When align_corners"),
    pytest.mark.filterwarnings("ignore:``build_loss``"),
    pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore``"),
]
every_pyramid = pytest.mark.parametrize("name", PYRAMIDS)
SIZES = [(3, 8, 12, 18), (2, 8, 13, 7), (2, 8, 4, 5)]


def prepared(module: nn.Module, training: bool) -> nn.Module:
    return randomise(module).to(DEVICE).double().train(training)


def results(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of all parameters."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    module.zero_grad()
    out = module(leaf)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device)
    (out * weight.view_as(out)).sum().backward()
    return [out.detach(), leaf.grad, *(parameter.grad for parameter in module.parameters())]


def assert_same(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """Compares them; both list parameters and buffers in the same order."""
    for a, b in zip(results(ours, x), results(theirs, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@every_pyramid
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("as_layer", [True, False])
def test_pyramid_equals_theirs(name: str, training: bool, layout: str, as_layer: bool) -> None:
    make_theirs, make_ours = PYRAMIDS[name]
    theirs, ours = prepared(make_theirs(), training), make_ours().to(DEVICE).double()
    own = theirs.parts[0] if isinstance(theirs, Called) else theirs
    ours.load_state_dict(own.state_dict(), strict=True)
    ours.train(training)
    for size in SIZES:
        x = operator_checks.make(size, torch.float64, layout)
        assert_same(ours if as_layer else functions(ours), theirs, x)


# Heads that start with a pyramid and a convolution: upstream's, and ours for these two.


def mmseg_head(align_corners: bool) -> tuple[nn.Module, nn.Module, Sequence[nn.Module]]:
    theirs = oracles.mmseg().PSPHead(
        in_channels=8, in_index=0, channels=3, num_classes=5, align_corners=align_corners, **NORM
    )
    del theirs.conv_seg
    ours = PyramidPoolingConv(8, 3, **WIDTH, align_corners=align_corners)
    call = Called(lambda x: theirs._forward_feature([x]), theirs)
    return call, ours, (theirs.bottleneck.bn, theirs.bottleneck.activate)


def smp_decoder() -> tuple[nn.Module, nn.Module, Sequence[nn.Module]]:
    theirs = oracles.smp().PSPDecoder([3, 8], out_channels=5, dropout=0.0)
    ours = PyramidPoolingConv(8, 5, kernel_size=1, x_first=False, global_norm=False)
    return Called(lambda x: theirs([x[:, :3], x]), theirs), ours, list(theirs.conv)[1:]


def smp_upernet() -> tuple[nn.Module, nn.Module, Sequence[nn.Module]]:
    theirs = oracles.smp().UPerNetPSPModule(8, 3)
    ours = PyramidPoolingConv(8, 3, **WIDTH, align_corners=False)
    return Called(theirs, theirs), ours, list(theirs.out_conv)[1:]


HEADS = {
    "mmseg": lambda: mmseg_head(False),
    "mmseg-align-corners": lambda: mmseg_head(True),
    "smp": smp_decoder,
    "smp-UPerNet": smp_upernet,
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("training", [True, False])
def test_convolution_equals_theirs(name: str, training: bool) -> None:
    theirs, ours, rest = HEADS[name]()
    prepared(theirs, training)
    state = theirs.parts[0].state_dict()
    after = re.compile(r"bottleneck\.bn|(out_)?conv\.1")
    ours.load_state_dict({k: v for k, v in state.items() if not after.match(k)}, strict=True)
    whole = nn.Sequential(ours, *copy.deepcopy(rest)).to(DEVICE).double().train(training)
    for size in SIZES:
        assert_same(whole, theirs, torch.randn(size, dtype=torch.float64, device=DEVICE))
