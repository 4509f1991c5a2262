"""Every layer under torch.compile's own backend: forward, backward and statistics as in eager."""

from __future__ import annotations

import copy
from collections.abc import Callable

import battery
import pytest
import torch
from battery import DEVICE
from checkpoints import randomise
from test_encoding_layers import soften
from torch import Tensor, nn

from stripctx import (
    ContextEncoding,
    EncodingLayer,
    HeightAttention,
    MixedPooling,
    PyramidPooling,
    PyramidPoolingConv,
    StripPooling,
)

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "StripPooling": lambda: StripPooling(8),
    "MixedPooling": lambda: MixedPooling(8, (3, 2)),
    "PyramidPooling": lambda: PyramidPooling(8, (1, 3)),
    "PyramidPoolingConv": lambda: PyramidPoolingConv(8, 4, (1, 3)),
    "HeightAttention": lambda: HeightAttention(8, 8, reduction=2),
    "EncodingLayer": lambda: EncodingLayer(8, 4),
    "ContextEncoding": lambda: ContextEncoding(8, 3, 4),
}


def results(layer: nn.Module, call: Callable[..., object], x: Tensor) -> list[Tensor]:
    """Outputs, and the gradients of the input and of the parameters."""
    leaf = x.clone().requires_grad_()
    heights = torch.arange(9, device=DEVICE).mul(14).expand(2, 9)
    arguments = (leaf, leaf, heights) if isinstance(layer, HeightAttention) else (leaf,)
    outputs = battery.tuple_of(call(*arguments))
    sum(y.square().mean() for y in outputs).backward()
    grads = [p.grad for p in layer.parameters() if p.requires_grad]
    return [y.detach() for y in outputs] + [leaf.grad, *grads]


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.parametrize("name", LAYERS)
def test_inductor(name: str) -> None:
    torch._dynamo.reset()
    layer = randomise(LAYERS[name]()).to(DEVICE)
    soften(layer)
    other = copy.deepcopy(layer)
    compiled = torch.compile(other, fullgraph=True)
    x = torch.randn(2, 8, 9, 7, device=DEVICE)
    want, got = results(layer, layer, x), results(other, compiled, x)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for a, b in zip(other.buffers(), layer.buffers(), strict=True):
        torch.testing.assert_close(a, b)
