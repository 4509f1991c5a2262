"""The height family: the row gate's values, gradients, contract and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import battery
import pytest
import torch
import torch.nn.functional as F
from battery import DEVICE, DTYPES, FORMATS, LAYOUTS, ODD_LAYOUTS, SHAPES, Case, Shape
from torch import Tensor

from stripctx import functional

OPS = torch.ops.stripctx


def plain_row_gate(x: Tensor, logits: Tensor) -> Tensor:
    """HANet's order: the sigmoid, then the interpolation."""
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


CASES = (gate_case(16), gate_case(1), gate_case(5))
GATE = CASES[2]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", FORMATS)
def test_against_float64(case: Case, dtype: torch.dtype, layout: str) -> None:
    for shape in (*SHAPES, (1, 5, 97, 33)):
        battery.check_float64(case, shape, dtype, layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ODD_LAYOUTS)
def test_any_strides(dtype: torch.dtype, layout: str) -> None:
    battery.check_float64(GATE, (2, 9, 6, 11), dtype, layout)


@pytest.mark.parametrize("shape", [(2, 9, 6, 11), (2, 9, 6, 8)], ids=str)
def test_strided_logits(shape: Shape) -> None:
    x = battery.make(shape, torch.float32, "contiguous")
    wide = torch.randn(2, 5, 9, 2, device=DEVICE)
    for logits in (wide[..., 0].transpose(1, 2), wide[:, :1, :, 0].transpose(1, 2)):
        torch.testing.assert_close(functional.row_gate(x, logits), plain_row_gate(x, logits))


def test_keeps_the_format() -> None:
    battery.check_format(GATE, (2, 9, 6, 11), torch.float32)


@every_case
def test_gradients(case: Case) -> None:
    battery.check_gradients(case, (2, 3, 4, 5))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits(layout: str) -> None:
    battery.check_bits(GATE, (2, 37, 30, 33), torch.float32, layout)


@pytest.mark.parametrize("layout", FORMATS)
def test_nan_and_infinity_spread(layout: str) -> None:
    battery.check_nonfinite(GATE, (2, 5, 6, 7), layout)


@pytest.mark.parametrize("layout", FORMATS)
def test_compile(layout: str) -> None:
    battery.check_compile(GATE, (2, 5, 6, 7), layout)


def test_export() -> None:
    battery.check_export(GATE, (2, 5, 6, 7))


def test_vmap() -> None:
    battery.check_vmap(GATE, (2, 3, 4, 5))


def test_forward_mode_is_refused() -> None:
    battery.check_refusals_of_forward_mode(GATE, (2, 3, 4, 5))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_opcheck(layout: str) -> None:
    x, logits = GATE.arguments((2, 5, 6, 7), torch.float32, layout)
    grad = torch.randn_like(x)
    for operator, arguments in (
        (OPS.row_gate, (x, logits)),
        (OPS.row_gate_backward, (grad, x, logits)),
    ):
        leaves = tuple(a.detach().requires_grad_() for a in arguments)
        torch.library.opcheck(operator.default, leaves)


def test_autocast() -> None:
    """The gate keeps x's dtype."""
    x, logits = GATE.arguments((2, 5, 6, 7), torch.float32)
    expected = functional.row_gate(x, logits.bfloat16().float())
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert torch.equal(functional.row_gate(x, logits.bfloat16()), expected)
        assert functional.row_gate(x.bfloat16(), logits).dtype == torch.bfloat16


def test_offsets_past_two_to_the_31() -> None:
    """Element offsets above 2^31, on storage that is never touched but where the view reads."""
    far = 2**31 + 5
    storage = torch.empty(far + 64, dtype=torch.bfloat16, device=DEVICE)
    x = storage.as_strided((2, 2, 3, 4), (far, 12, 4, 1))
    logits = storage.as_strided((2, 2, 3), (far, 8, 1), 30)
    values = torch.randn(2, 2, 3, 4, device=DEVICE).bfloat16()
    gates = torch.randn(2, 2, 3, device=DEVICE).bfloat16()
    x.copy_(values)
    logits.copy_(gates)
    assert torch.equal(functional.row_gate(x, logits), functional.row_gate(values, gates))


def test_extreme_logits() -> None:
    logits = torch.tensor([[[-1e30, -200.0, 200.0, 1e30]]], device=DEVICE).requires_grad_()
    x = torch.ones(1, 1, 4, 3, device=DEVICE)
    out = functional.row_gate(x, logits)
    assert torch.equal(out[0, 0, :, 0], torch.tensor([0.0, 0.0, 1.0, 1.0], device=DEVICE))
    out.sum().backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def map_of(*size: int, **options: Any) -> Tensor:
    return torch.zeros(size, device=DEVICE, **options)


X = (2, 3, 4, 5)
REFUSED: list[tuple[Callable[..., Any], tuple[Any, ...], str]] = [
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


@pytest.mark.parametrize(("function", "arguments", "words"), REFUSED)
def test_refuses(function: Callable[..., Any], arguments: tuple[Any, ...], words: str) -> None:
    """In the same words from the kernels and from the fake kernels."""
    battery.raises(ValueError, words, lambda: function(*arguments))
    meta = tuple(a.to("meta") if isinstance(a, Tensor) else a for a in arguments)
    battery.raises(ValueError, words, lambda: function(*meta))
