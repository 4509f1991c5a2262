"""Our operators in PyTorch's tools: FLOP counts, names in the autograd graph, batched gradients,
TorchScript traces."""

from __future__ import annotations

import networks
import pytest
import test_layers
import torch
from operator_checks import DEVICE
from test_layers import LAYERS
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from stripctx import EncodingLayer, PyramidPoolingConv, StripPooling, functional

every_layer = pytest.mark.parametrize("name", LAYERS)


def rand(*size: int) -> Tensor:
    return torch.randn(size, device=DEVICE)


def flops(module: torch.nn.Module, x: Tensor, backward: bool) -> int:
    with FlopCounterMode(display=False) as counter:
        out = module(x)
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


def test_every_operator_has_a_formula() -> None:
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("stripctx::") and "." not in name and "map_memory" not in name:
            operator = getattr(torch.ops.stripctx, name.partition("::")[2])
            assert operator in flop_registry, name


@pytest.mark.parametrize("backward", [False, True])
def test_flops(backward: bool) -> None:
    """Two per multiply-add; a backward pass has a product for each operand."""
    n, c, h, w, k = 2, 16, 12, 10, 8
    x, times = rand(n, c, h, w).requires_grad_(), 3 if backward else 1
    strips = 3 * c * c * (h + w) + c * c * h * w
    assert flops(StripPooling(c).to(DEVICE), x, backward) == 2 * n * strips * times
    codes = k * c * h * w * (2 + (5 if backward else 0))
    assert flops(EncodingLayer(c, k).to(DEVICE), x, backward) == 2 * n * codes
    small = (1 + 4) * (c * c // 2 + 9 * c // 2 * 6)  # branches on 1x1 and 2x2 bins, their taps
    layer = PyramidPoolingConv(c, 6, (1, 2)).to(DEVICE)
    assert flops(layer, x, backward) == 2 * n * (9 * c * 6 * h * w + small) * times


def test_nodes_carry_names() -> None:
    x = rand(2, 3, 4, 5).requires_grad_()
    assert "strip_pool" in functional.strip_pool(x)[0].grad_fn.name()
    assert "pyramid_pool" in functional.pyramid_pool(x, (1, 2))[1].grad_fn.name()
    assert "row_gate" in functional.row_gate(x, rand(2, 3, 2)).grad_fn.name()


@every_layer
def test_batches_of_gradients(name: str) -> None:
    layer, inputs = test_layers.make(name).eval(), test_layers.arguments(name, 2, 5, 4)
    leaves = [one for one in (*inputs, *layer.parameters()) if one.is_floating_point()]
    leaves = [one.requires_grad_() for one in leaves]
    out = test_layers.operator_checks.tuple_of(layer(*inputs))[0]
    grads = torch.randn(3, *out.shape, device=DEVICE)
    options = {"retain_graph": True, "allow_unused": True}
    together = torch.autograd.grad(out, leaves, grads, is_grads_batched=True, **options)
    alone = [torch.autograd.grad(out, leaves, grad, **options) for grad in grads]
    for got, *want in zip(together, *alone, strict=True):
        if want[0] is not None:
            torch.testing.assert_close(got, torch.stack(want), rtol=1e-4, atol=1e-5)


@every_layer
def test_torchscript_traces(name: str) -> None:
    """For any map size."""
    layer = test_layers.make(name).eval()
    traced = torch.jit.trace(layer, test_layers.arguments(name, 2, 9, 7), check_trace=False)
    for size in ((2, 9, 7), (1, 13, 18), (2, 3, 3)):
        inputs = test_layers.arguments(name, *size)
        test_layers.assert_close(traced(*inputs), layer(*inputs))


@networks.every_network
def test_torchscript_traces_of_networks(name: str) -> None:
    network = networks.make(name).eval()
    image = networks.image(2, 3, 64, 96)
    traced = torch.jit.trace(network, image, check_trace=False, strict=False)
    for x in (image, networks.image(1, 3, 97, 65)):
        for got, want in zip(*map(tree_leaves, (traced(x), network(x))), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("x_index", [0, 1, 2])
def test_traces_of_a_level_of_the_maps_size(x_index: int) -> None:
    weight = rand(5, 12, 3, 3)

    def function(x: Tensor, level: Tensor) -> Tensor:
        return functional.pyramid_conv(x, [x + 1, level], weight, padding=1, x_index=x_index)

    inputs = rand(2, 4, 9, 7), rand(2, 4, 3, 2)
    traced = torch.jit.trace(function, inputs, check_trace=False)
    for x, level in (inputs, (rand(1, 4, 12, 5), rand(1, 4, 5, 3))):
        torch.testing.assert_close(traced(x, level), function(x, level), rtol=1e-4, atol=1e-5)
