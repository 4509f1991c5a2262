"""The strip family: operators, gradients, operator suite, refusals, and the StripPooling layer."""

from __future__ import annotations

import copy
from typing import Any

import operator_checks
import pytest
import torch
import torch.nn.functional as F
from operator_checks import DEVICE, FORMATS, SHAPES, Case, Shape
from operator_suite import FAR_SHAPES, OperatorSuite, Refusal, far_and_near, map_of
from torch import Tensor, nn

from stripctx import StripPooling, functional

OPS = torch.ops.stripctx


def plain_strip_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return x.mean(3, keepdim=True), x.mean(2, keepdim=True)
    return F.adaptive_avg_pool2d(x, (None, 1)), F.adaptive_avg_pool2d(x, (1, None))


def plain_strip_gate(x: Tensor, rows: Tensor, cols: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x * F.conv2d(F.relu(rows.expand_as(x) + cols.expand_as(x)), weight, bias).sigmoid()


def strip_sizes(shape: Shape) -> list[tuple[int, ...]]:
    batch, channels, height, width = shape
    return [(batch, channels, height, 1), (batch, channels, 1, width)]


POOL = Case("strip_pool", functional.strip_pool, plain_strip_pool, lambda s: [s])
ADD_RELU = Case(
    "strip_add_relu",
    functional.strip_add_relu,
    lambda rows, cols: F.relu(rows + cols),
    strip_sizes,
)
GATE = Case(
    "sigmoid_gate",
    functional.sigmoid_gate,
    lambda x, logits, bias: x * torch.sigmoid(logits + bias[:, None, None]),
    lambda s: [s, s, (s[1],)],
)
CONV = Case(
    "strip_conv",
    OPS.strip_conv,
    lambda rows, cols, weight: F.conv2d(F.relu(rows + cols), weight),
    lambda s: [*strip_sizes(s), (s[1] + 1, s[1], 1, 1)],
)
STRIP_GATE = Case(
    "strip_gate",
    functional.strip_gate,
    plain_strip_gate,
    lambda s: [s, *strip_sizes(s), (s[1], s[1], 1, 1), (s[1],)],
)


def test_autocast() -> None:
    """Pooling and gating keep x's dtype; the inner convolution casts as conv2d does."""
    x = torch.randn(2, 8, 5, 7, device=DEVICE)
    half = torch.randn(2, 8, 5, 7, device=DEVICE, dtype=torch.bfloat16)
    rows, cols = functional.strip_pool(x)
    weight = torch.randn(8, 8, 1, 1, device=DEVICE)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert functional.strip_pool(x)[0].dtype == torch.float32
        assert functional.strip_pool(half)[0].dtype == torch.bfloat16
        assert functional.sigmoid_gate(x, half).dtype == torch.float32
        assert functional.sigmoid_gate(half, x).dtype == torch.bfloat16
        assert functional.strip_add_relu(rows, cols.bfloat16()).dtype == torch.float32
        assert functional.strip_gate(x, rows, cols, weight).dtype == torch.float32
    gated = functional.sigmoid_gate(x, half.float())
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert torch.equal(functional.sigmoid_gate(x, half), gated)


@pytest.mark.parametrize("layout", FORMATS)
def test_conv_computes_only_required_gradients(layout: str) -> None:
    """No gradient for a frozen weight; also under vmap."""
    operator_checks.check_vmap(CONV, (2, 5, 6, 7))
    rows, cols, weight = CONV.arguments((2, 5, 6, 7), torch.float64, layout)
    rows.requires_grad_()
    OPS.strip_conv(rows, cols, weight).sum().backward()
    alone = rows.grad.clone()
    rows.grad = None
    OPS.strip_conv(rows, cols, weight.requires_grad_()).sum().backward()
    assert torch.equal(rows.grad, alone)
    weights = torch.stack([weight.detach(), 2 * weight.detach()])
    mapped = torch.vmap(OPS.strip_conv, (None, None, 0))(rows.detach(), cols, weights)
    for one, expected in zip(mapped, weights, strict=True):
        torch.testing.assert_close(one, OPS.strip_conv(rows, cols, expected))


@pytest.mark.parametrize("shape, axis", FAR_SHAPES)
def test_offsets_past_two_to_the_31(shape: tuple[int, ...], axis: int) -> None:
    x, values = far_and_near(shape, axis)
    for a, b in zip(functional.strip_pool(x), functional.strip_pool(values), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(functional.sigmoid_gate(x, x), functional.sigmoid_gate(values, values))


def test_extreme_logits() -> None:
    logits = torch.tensor([-1e30, -200.0, -90.0, -50.0, 0.0, 50.0, 200.0, 1e30], device=DEVICE)
    logits = logits.view(1, 1, 1, 8)
    x = torch.ones_like(logits).requires_grad_()
    leaf = logits.clone().requires_grad_()
    out = functional.sigmoid_gate(x, leaf)
    torch.testing.assert_close(out, torch.sigmoid(logits), rtol=1e-6, atol=2e-38)
    out.sum().backward()
    slope = torch.sigmoid(logits.double()) * torch.sigmoid(-logits.double())
    torch.testing.assert_close(leaf.grad.double(), slope, rtol=1e-5, atol=2e-38)


def test_bfloat16_keeps_subnormal_numbers() -> None:
    """Hardware conversions to bfloat16 flush them to zero."""
    powers = torch.arange(-133, -101, device=DEVICE, dtype=torch.float64)
    rows = torch.exp2(powers).bfloat16().view(1, 1, 32, 1)
    out = functional.strip_add_relu(rows, torch.zeros(1, 1, 1, 20, device=DEVICE).bfloat16())
    assert torch.equal(out, rows.expand_as(out))


X = (2, 3, 4, 5)
REFUSED: list[Refusal] = [
    (functional.strip_pool, (map_of(2, 3),), "x must be 4-D (N, C, H, W), got 2-D (2, 3)"),
    (
        functional.strip_pool,
        (map_of(*X, dtype=torch.int64),),
        "x must be float64, float32, float16 or bfloat16, got int64",
    ),
    (functional.strip_pool, (map_of(*X, dtype=torch.complex64),), "got complex64"),
    (OPS.sigmoid_gate, (map_of(*X), None, map_of(3)), "logits must be a tensor, got None"),
    (
        functional.strip_add_relu,
        (map_of(2, 3, 4, 5), map_of(2, 3, 1, 5)),
        "rows must have shape (2, 3, 4, 1), got (2, 3, 4, 5)",
    ),
    (
        functional.strip_add_relu,
        (map_of(2, 3, 4, 1), map_of(2, 4, 1, 5)),
        "cols must have shape (2, 3, 1, 5), got (2, 4, 1, 5)",
    ),
    (
        functional.strip_add_relu,
        (map_of(2, 3, 4, 1), map_of(2, 3, 1, 5, dtype=torch.float64)),
        "cols must have the dtype of rows, float32, got float64",
    ),
    (
        functional.sigmoid_gate,
        (map_of(*X), map_of(2, 3, 4, 6)),
        "logits must have shape (2, 3, 4, 5), got (2, 3, 4, 6)",
    ),
    (
        functional.sigmoid_gate,
        (map_of(*X), map_of(*X), map_of(4)),
        "bias must have shape (3), got (4)",
    ),
    (
        functional.sigmoid_gate,
        (map_of(*X), map_of(*X), map_of(3, 1)),
        "bias must be 1-D (C), got 2-D (3, 1)",
    ),
    (
        functional.strip_gate,
        (map_of(*X), map_of(2, 3, 4, 1), map_of(2, 3, 1, 5), map_of(3, 3, 3, 3)),
        "weight must have shape (3, 3, 1, 1), got (3, 3, 3, 3)",
    ),
    (
        OPS.strip_pool_backward,
        (map_of(2, 3, 4, 1), map_of(2, 3, 2, 5), False),
        "grad_cols must have shape (2, 3, 1, 5), got (2, 3, 2, 5)",
    ),
    (
        OPS.strip_add_relu_backward,
        (map_of(2, 3, 4, 6), map_of(2, 3, 4, 1), map_of(2, 3, 1, 5)),
        "grad must have shape (2, 3, 4, 5), got (2, 3, 4, 6)",
    ),
    (
        OPS.sigmoid_gate_backward,
        (map_of(1, 3, 4, 5), map_of(*X), map_of(*X), map_of(3)),
        "grad must have shape (2, 3, 4, 5), got (1, 3, 4, 5)",
    ),
    (
        OPS.sigmoid_gate_backward,
        (map_of(*X), map_of(*X), map_of(*X).half(), map_of(3)),
        "logits must have the dtype of x, float32, got float16",
    ),
]


class TestStrip(OperatorSuite):
    kernels = (POOL, ADD_RELU, GATE)
    compositions = (CONV, STRIP_GATE)
    refusals = REFUSED
    # Many channels_last maps: whole ones, and some that are divided along H and W.
    shapes = (*SHAPES, (32, 128, 3, 5), (128, 2, 25, 66))

    @staticmethod
    def samples(layout: str) -> dict[Any, tuple[Any, ...]]:
        x, logits, bias = GATE.arguments((2, 5, 6, 7), torch.float32, layout)
        rows, cols = ADD_RELU.arguments((2, 5, 6, 7), torch.float32, layout)
        return {
            OPS.strip_pool: (x,),
            OPS.strip_pool_backward: (rows, cols, layout == "channels_last"),
            OPS.strip_add_relu: (rows, cols),
            OPS.strip_add_relu_backward: (x, rows, cols),
            OPS.strip_conv: (rows, cols, map_of(4, 5, 1, 1)),
            OPS.sigmoid_gate: (x, logits, bias),
            OPS.sigmoid_gate_backward: (logits, x, logits, bias),
        }


def test_refuses_another_device() -> None:
    here, other = ("cuda:0", "cpu") if DEVICE.type == "cuda" else ("cpu", "meta")
    words = f"logits must be on the device of x, {here}, got {other}"
    with pytest.raises(ValueError, match=words):
        functional.sigmoid_gate(map_of(*X), torch.zeros(X, device=other))


def test_refuses_sparse() -> None:
    with pytest.raises(ValueError, match=r"x must be a dense tensor, got torch\.sparse_coo"):
        functional.strip_pool(map_of(*X).to_sparse())


# The layer.


def plain_layer(layer: StripPooling, x: Tensor) -> Tensor:
    """SPNet's SPBlock in plain PyTorch, times its input, with the layer's modules."""
    rows = layer.bn1(layer.conv1(F.adaptive_avg_pool2d(x, (None, 1)))).expand_as(x)
    cols = layer.bn2(layer.conv2(F.adaptive_avg_pool2d(x, (1, None)))).expand_as(x)
    return x * layer.conv3(F.relu(rows + cols)).sigmoid()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", FORMATS)
def test_layer_equals_plain(training: bool, layout: str) -> None:
    layer = StripPooling(8).to(DEVICE).double().train(training)
    other = copy.deepcopy(layer)
    x = operator_checks.make((3, 8, 9, 7), torch.float64, layout).requires_grad_()
    y = x.detach().clone().requires_grad_()
    out, expected = layer(x), plain_layer(other, y)
    out.square().sum().backward()
    expected.square().sum().backward()
    assert operator_checks.relative_error(out, expected) < 1e-12
    assert operator_checks.relative_error(x.grad, y.grad) < 1e-12
    for a, b in zip(layer.parameters(), other.parameters(), strict=True):
        assert operator_checks.relative_error(a.grad, b.grad) < 1e-11
    for a, b in zip(layer.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_layer_loads_spblock() -> None:
    """SPBlock's keys and parameter counts equal upstream's."""
    counts = {64: 28_992, 128: 115_328, 256: 460_032, 512: 1_837_568}
    for channels, count in counts.items():
        assert sum(p.numel() for p in StripPooling(channels).parameters()) == count
    upstream = nn.Module()
    upstream.conv1 = nn.Conv2d(16, 16, (3, 1), padding=(1, 0), bias=False)
    upstream.bn1 = nn.BatchNorm2d(16)
    upstream.conv2 = nn.Conv2d(16, 16, (1, 3), padding=(0, 1), bias=False)
    upstream.bn2 = nn.BatchNorm2d(16)
    upstream.conv3 = nn.Conv2d(16, 16, 1)
    layer = StripPooling(16)
    layer.load_state_dict(upstream.state_dict(), strict=True)
    assert torch.equal(layer.conv3.bias, upstream.conv3.bias)


def test_layer_trains() -> None:
    layer = StripPooling(8).to(DEVICE)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    x = torch.randn(4, 8, 10, 12, device=DEVICE)
    target = x * (x.mean(3, keepdim=True) > 0)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_layer_refuses() -> None:
    operator_checks.raises(
        ValueError, "in_channels must be positive, got 0", lambda: StripPooling(0)
    )
    operator_checks.raises(
        ValueError, "x must have shape (N, 8, H, W)", lambda: StripPooling(8)(torch.zeros(8, 5, 7))
    )
