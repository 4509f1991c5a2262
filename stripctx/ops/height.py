"""The height family's operators: schemas, fake kernels, autograd formulas, autocast, vmap.

Shapes: x, out, grad (N, C, H, W); logits (N, C, L). The public functions are in
stripctx.functional, the arithmetic in stripctx.reference.height.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stripctx.layout import empty, memory_format
from stripctx.ops import checks
from stripctx.ops.batching import over_images
from stripctx.ops.register import define, save_inputs
from stripctx.reference import height as reference
from stripctx.reference.upsample import BILINEAR, matrix

OPS = torch.ops.stripctx


# row_gate: out = x * rows, where rows (N, C, H) = interpolate(sigmoid(logits), H).


def _check_arguments(name: str, x: Tensor, logits: Tensor) -> None:
    checks.tensor(name, "x", x, "(N, C, H, W)")
    checks.tensor(name, "logits", logits, "(N, C, L)")
    checks.alike(name, "logits", logits, "x", x)
    checks.size(name, "logits", logits, (*x.shape[:2], logits.size(2)))
    if logits.size(2) < 1:
        raise ValueError(
            f"{name}: logits must have at least one row, got {checks.text(logits.shape)}"
        )


def _check_gate(x: Tensor, logits: Tensor) -> None:
    _check_arguments("row_gate", x, logits)


def _fake_gate(x: Tensor, logits: Tensor) -> Tensor:
    return empty(tuple(x.shape), x, memory_format(x))


def _backward_gate(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return OPS.row_gate_backward(grad, *ctx.saved_tensors)


def _autocast_gate(x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    return x, logits.to(x.dtype)


def _check_gate_backward(grad: Tensor, x: Tensor, logits: Tensor) -> None:
    name = "row_gate_backward"
    _check_arguments(name, x, logits)
    checks.tensor(name, "grad", grad, "(N, C, H, W)")
    checks.alike(name, "grad", grad, "x", x)
    checks.size(name, "grad", grad, tuple(x.shape))


def _fake_gate_backward(grad: Tensor, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    return empty(tuple(x.shape), x, memory_format(x)), grad_logits


def _backward_gate_backward(ctx: Any, grad_x: Tensor, grad_logits: Tensor) -> tuple[Tensor, ...]:
    """With s = sigmoid(logits) and A the interpolation: differentiates grad * (A s) and
    A^T(sum over W of grad * x) * s'."""
    grad, x, logits = ctx.saved_tensors
    gate = torch.sigmoid(logits)
    slope = gate * torch.sigmoid(-logits)
    rows = matrix(logits.size(2), x.size(2), BILINEAR, 0.0, logits)
    toward_rows = ((grad_logits * slope) @ rows.T)[..., None]
    to_grad = grad_x * (gate @ rows.T)[..., None] + toward_rows * x
    to_x = toward_rows * grad
    through_gate = (grad_x * grad).sum(3) @ rows
    through_slope = grad_logits * ((grad * x).sum(3) @ rows) * (1 - 2 * gate)
    return to_grad, to_x, slope * (through_gate + through_slope)


define(
    "row_gate",
    check=_check_gate,
    reference=reference.row_gate,
    fake=_fake_gate,
    setup_context=save_inputs,
    backward=_backward_gate,
    vmap=over_images,
    autocast=_autocast_gate,
)
define(
    "row_gate_backward",
    check=_check_gate_backward,
    reference=reference.row_gate_backward,
    fake=_fake_gate_backward,
    setup_context=save_inputs,
    backward=_backward_gate_backward,
    vmap=over_images,
)
