"""The height family: the row gate's values, gradients, operator suite and refusals."""

from __future__ import annotations

from typing import Any

import operator_checks
import pytest
import torch
import torch.nn.functional as F
from operator_checks import DEVICE, SHAPES, Case, Shape
from operator_suite import (
    FAR_SHAPES,
    OperatorSuite,
    Refusal,
    beyond_two_to_the_31,
    far_and_near,
    map_of,
)
from torch import Tensor

from stripctx import functional

OPS = torch.ops.stripctx


def plain_row_gate(x: Tensor, logits: Tensor) -> Tensor:
    """HANet's order of operations: the sigmoid, then the interpolation."""
    if x.numel() == 0:
        return x * logits.sigmoid().mean(2)[:, :, None, None]
    return x * F.interpolate(logits.sigmoid(), x.size(2), mode="linear")[..., None]


def gate_case(rows: int) -> Case:
    return Case(
        f"row_gate_{rows}",
        functional.row_gate,
        plain_row_gate,
        lambda s: [s, (s[0], s[1], rows)],
        rounds_as_plain=True,
    )


GATE = gate_case(5)


@pytest.mark.parametrize("shape", [(2, 9, 6, 11), (2, 9, 6, 8)], ids=str)
def test_strided_logits(shape: Shape) -> None:
    x = operator_checks.make(shape, torch.float32, "contiguous")
    wide = torch.randn(2, 5, 9, 2, device=DEVICE)
    for logits in (wide[..., 0].transpose(1, 2), wide[:, :1, :, 0].transpose(1, 2)):
        torch.testing.assert_close(functional.row_gate(x, logits), plain_row_gate(x, logits))


def test_autocast() -> None:
    """The gate keeps x's dtype."""
    x, logits = GATE.arguments((2, 5, 6, 7), torch.float32)
    expected = functional.row_gate(x, logits.bfloat16().float())
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert torch.equal(functional.row_gate(x, logits.bfloat16()), expected)
        assert functional.row_gate(x.bfloat16(), logits).dtype == torch.bfloat16


@pytest.mark.parametrize("shape, axis", FAR_SHAPES)
def test_offsets_past_two_to_the_31(shape: tuple[int, ...], axis: int) -> None:
    far, x = far_and_near(shape, axis)
    logits = torch.randn(shape[:3], device=DEVICE).bfloat16()
    far_logits = beyond_two_to_the_31(logits, axis) if axis < 3 else logits
    out = functional.row_gate(far, far_logits)
    assert torch.equal(out, functional.row_gate(x, logits))
    for a, b in zip(
        OPS.row_gate_backward(far, far, far_logits),
        OPS.row_gate_backward(x, x, logits),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_extreme_logits() -> None:
    logits = torch.tensor([[[-1e30, -200.0, 200.0, 1e30]]], device=DEVICE).requires_grad_()
    x = torch.ones(1, 1, 4, 3, device=DEVICE)
    out = functional.row_gate(x, logits)
    assert torch.equal(out[0, 0, :, 0], torch.tensor([0.0, 0.0, 1.0, 1.0], device=DEVICE))
    out.sum().backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


X = (2, 3, 4, 5)
REFUSED: list[Refusal] = [
    (functional.row_gate, (map_of(2, 3), map_of(2, 3, 4)), "row_gate: x must be 4-D (N, C, H, W)"),
    (
        functional.row_gate,
        (map_of(*X), map_of(*X)),
        "logits must be 3-D (N, C, L), got 4-D (2, 3, 4, 5)",
    ),
    (
        functional.row_gate,
        (map_of(*X), map_of(2, 4, 6)),
        "logits must have shape (2, 3, 6), got (2, 4, 6)",
    ),
    (
        functional.row_gate,
        (map_of(*X), map_of(2, 3, 0)),
        "logits must have at least one row, got (2, 3, 0)",
    ),
    (
        functional.row_gate,
        (map_of(*X), map_of(2, 3, 6).half()),
        "logits must have the dtype of x, float32, got float16",
    ),
    (
        OPS.row_gate_backward,
        (map_of(1, 3, 4, 5), map_of(*X), map_of(2, 3, 6)),
        "row_gate_backward: grad must have shape (2, 3, 4, 5), got (1, 3, 4, 5)",
    ),
]


class TestHeight(OperatorSuite):
    kernels = (gate_case(16), gate_case(1), GATE)
    typical = (GATE,)
    refusals = REFUSED
    shapes = (*SHAPES, (1, 5, 97, 33))

    @staticmethod
    def samples(layout: str) -> dict[Any, tuple[Any, ...]]:
        x, logits = GATE.arguments((2, 5, 6, 7), torch.float32, layout)
        return {OPS.row_gate: (x, logits), OPS.row_gate_backward: (x.flip(0), x, logits)}
