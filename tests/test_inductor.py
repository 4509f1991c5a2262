"""Every layer under torch.compile's own backend: forward, backward and statistics equal eager."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import operator_checks
import pytest
import torch
from test_layers import arguments, make
from torch import Tensor, nn

pytestmark = pytest.mark.slow

LAYERS = (  # MixedPooling contains StripPooling
    "MixedPooling",
    "PyramidPooling",
    "PyramidPoolingConv",
    "HeightAttention",
    "EncodingLayer",
    "ContextEncoding",
)


def results(layer: nn.Module, call: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The outputs, and the gradients of the input and of the parameters."""
    leaf = inputs[0].clone().requires_grad_()
    outputs = operator_checks.tuple_of(call(leaf, *inputs[1:]))
    sum(y.square().mean() for y in outputs).backward()
    grads = [p.grad for p in layer.parameters() if p.requires_grad]
    return [y.detach() for y in outputs] + [leaf.grad, *grads]


@pytest.fixture(scope="module")
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty cache, because graphs in the cache are not compiled again."""
    return tmp_path_factory.mktemp("inductor")


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.parametrize("name", LAYERS)
def test_inductor(name: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")  # Inductor then raises errors that it otherwise only logs
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(empty_cache))
    torch._dynamo.reset()
    layer, inputs = make(name), arguments(name)
    other = copy.deepcopy(layer)
    scalar = {"cpp.simdlen": 1}  # compiled sooner than vectors
    compiled = torch.compile(other, fullgraph=True, options=scalar)
    want, got = results(layer, layer, inputs), results(other, compiled, inputs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for a, b in zip(other.buffers(), layer.buffers(), strict=True):
        torch.testing.assert_close(a, b)
