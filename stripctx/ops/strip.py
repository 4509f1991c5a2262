"""The strip family's operators: schemas, fake kernels, autograd formulas, autocast, vmap.

Shapes: x, out, grad (N, C, H, W); rows (N, C, H, 1), means over W; cols (N, C, 1, W), means over H.
The public functions are in stripctx.functional, the arithmetic in stripctx.reference.strip.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stripctx.layout import empty, is_channels_last, memory_format
from stripctx.ops import checks
from stripctx.ops.batching import over_channels, over_images_of
from stripctx.ops.register import define, save_inputs
from stripctx.reference import strip as reference

OPS = torch.ops.stripctx


def check_strips(name: str, rows: Tensor, cols: Tensor, prefix: str = "") -> None:
    """Raises ValueError unless rows and cols are strips of one map."""
    first, second = prefix + "rows", prefix + "cols"
    checks.tensor(name, first, rows, "(N, C, H, 1)")
    checks.tensor(name, second, cols, "(N, C, 1, W)")
    checks.alike(name, second, cols, first, rows)
    batch, channels, height = rows.shape[:3]
    checks.size(name, first, rows, (batch, channels, height, 1))
    checks.size(name, second, cols, (batch, channels, 1, cols.size(3)))


def _check_same_map(name: str, argument: str, value: Tensor, first: str, other: Tensor) -> None:
    checks.tensor(name, argument, value, "(N, C, H, W)")
    checks.alike(name, argument, value, first, other)
    checks.size(name, argument, value, tuple(other.shape))


# strip_pool: rows = mean over W, cols = mean over H.


def _check_pool(x: Tensor) -> None:
    checks.tensor("strip_pool", "x", x, "(N, C, H, W)")


def _fake_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = x.shape
    format = memory_format(x)
    return (
        empty((batch, channels, height, 1), x, format),
        empty((batch, channels, 1, width), x, format),
    )


def _save_pool(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.channels_last = is_channels_last(inputs[0])


def _backward_pool(ctx: Any, grad_rows: Tensor, grad_cols: Tensor) -> tuple[Tensor]:
    return (OPS.strip_pool_backward(grad_rows, grad_cols, ctx.channels_last),)


def _check_pool_backward(grad_rows: Tensor, grad_cols: Tensor, channels_last: bool) -> None:
    check_strips("strip_pool_backward", grad_rows, grad_cols, "grad_")


def _fake_pool_backward(grad_rows: Tensor, grad_cols: Tensor, channels_last: bool) -> Tensor:
    format = torch.channels_last if channels_last else torch.contiguous_format
    return empty((*grad_rows.shape[:3], grad_cols.size(3)), grad_rows, format)


def _save_pool_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


def _backward_pool_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *OPS.strip_pool(grad), None  # the adjoint of the adjoint is the forward


# strip_add_relu: out = relu(rows + cols).


def _check_add_relu(rows: Tensor, cols: Tensor) -> None:
    check_strips("strip_add_relu", rows, cols)


def _fake_add_relu(rows: Tensor, cols: Tensor) -> Tensor:
    return empty((*rows.shape[:3], cols.size(3)), rows, memory_format(rows, cols))


def _backward_add_relu(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return OPS.strip_add_relu_backward(grad, *ctx.saved_tensors)


def _autocast_add_relu(rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(rows.dtype, cols.dtype)
    return rows.to(dtype), cols.to(dtype)


def _check_add_relu_backward(grad: Tensor, rows: Tensor, cols: Tensor) -> None:
    name = "strip_add_relu_backward"
    check_strips(name, rows, cols)
    checks.tensor(name, "grad", grad, "(N, C, H, W)")
    checks.alike(name, "grad", grad, "rows", rows)
    checks.size(name, "grad", grad, (*rows.shape[:3], cols.size(3)))


def _fake_add_relu_backward(grad: Tensor, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    format = memory_format(rows, cols)
    return empty(tuple(rows.shape), rows, format), empty(tuple(cols.shape), cols, format)


def _backward_add_relu_backward(
    ctx: Any, grad_rows: Tensor, grad_cols: Tensor
) -> tuple[Tensor | None, ...]:
    _, rows, cols = ctx.saved_tensors
    return torch.where(rows + cols <= 0, 0, grad_rows + grad_cols), None, None


# sigmoid_gate: out = x * sigmoid(logits + bias).


def _check_gate_arguments(name: str, x: Tensor, logits: Tensor, bias: Tensor) -> None:
    checks.tensor(name, "x", x, "(N, C, H, W)")
    _check_same_map(name, "logits", logits, "x", x)
    checks.tensor(name, "bias", bias, "(C)")
    checks.alike(name, "bias", bias, "x", x)
    checks.size(name, "bias", bias, (x.size(1),))


def _check_gate(x: Tensor, logits: Tensor, bias: Tensor) -> None:
    _check_gate_arguments("sigmoid_gate", x, logits, bias)


def _fake_gate(x: Tensor, logits: Tensor, bias: Tensor) -> Tensor:
    return empty(tuple(x.shape), x, memory_format(x))


def _backward_gate(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return OPS.sigmoid_gate_backward(grad, *ctx.saved_tensors)


def _autocast_gate(x: Tensor, logits: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return x, logits.to(x.dtype), bias.to(x.dtype)


def _check_gate_backward(grad: Tensor, x: Tensor, logits: Tensor, bias: Tensor) -> None:
    name = "sigmoid_gate_backward"
    _check_gate_arguments(name, x, logits, bias)
    _check_same_map(name, "grad", grad, "x", x)


def _fake_gate_backward(
    grad: Tensor, x: Tensor, logits: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    format = memory_format(x)
    shape = tuple(x.shape)
    return empty(shape, x, format), empty(shape, x, format), torch.empty_like(bias)


def _backward_gate_backward(
    ctx: Any, grad_x: Tensor, grad_logits: Tensor, grad_bias: Tensor
) -> tuple[Tensor, ...]:
    """With z = logits + bias and s = sigmoid(z): differentiates grad * s and grad * x * s'(z)."""
    grad, x, logits, bias = ctx.saved_tensors
    total = logits + bias[:, None, None]
    gate = torch.sigmoid(total)
    slope = gate * torch.sigmoid(-total)
    toward_slope = grad_logits + grad_bias[:, None, None]
    to_grad = grad_x * gate + toward_slope * x * slope
    to_x = toward_slope * grad * slope
    to_logits = grad * slope * (grad_x + toward_slope * x * (1 - 2 * gate))
    return to_grad, to_x, to_logits, to_logits.sum((0, 2, 3))


# strip_conv: a 1x1 convolution of relu(rows + cols), the middle of the strip pooling module. The
# map after the ReLU is not saved for the backward pass: it is recomputed, at the cost of one write,
# and freed before the gradient of the same size is allocated.


def _check_conv(rows: Tensor, cols: Tensor, weight: Tensor) -> None:
    name = "strip_conv"
    check_strips(name, rows, cols)
    checks.tensor(name, "weight", weight, "(C, M, 1, 1)")
    checks.alike(name, "weight", weight, "rows", rows)
    checks.size(name, "weight", weight, (weight.size(0), rows.size(1), 1, 1))


def _strip_conv(rows: Tensor, cols: Tensor, weight: Tensor) -> Tensor:
    return _conv1x1(OPS.strip_add_relu(rows, cols), weight)


def _fake_conv(rows: Tensor, cols: Tensor, weight: Tensor) -> Tensor:
    shape = (rows.size(0), weight.size(0), rows.size(2), cols.size(3))
    return empty(shape, rows, memory_format(rows, cols))


def _backward_conv(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Computes the weight's gradient first, as only it needs the rectified map."""
    rows, cols, weight = ctx.saved_tensors
    grad = grad.contiguous(memory_format=memory_format(rows, cols))
    grad_weight = None
    if ctx.needs_input_grad[-1]:
        grad_weight = _conv1x1_weight(grad, OPS.strip_add_relu(rows, cols), weight)
    grad_map = _conv1x1(grad, weight.transpose(0, 1))
    return *OPS.strip_add_relu_backward(grad_map, rows, cols), grad_weight


def _autocast_conv(rows: Tensor, cols: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Casts as conv2d does: everything except float64."""
    if torch.promote_types(rows.dtype, cols.dtype) is torch.float64:
        return rows.double(), cols.double(), weight
    dtype = torch.get_autocast_dtype(rows.device.type)
    return rows.to(dtype), cols.to(dtype), weight.to(dtype)


def _conv1x1(map: Tensor, weight: Tensor) -> Tensor:
    """The 1x1 convolution in the memory format of `map` (dense), whatever the weight's. Handles
    empty maps, which torch's convolution rejects."""
    if map.numel() == 0:
        return map.new_zeros((map.size(0), weight.size(0), *map.shape[2:]))
    return F.conv2d(map, weight.flatten(1)[:, :, None, None])


def _conv1x1_weight(grad: Tensor, map: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `weight`, from the gradient of the result and the input map."""
    if grad.numel() == 0 or map.numel() == 0:
        return torch.zeros_like(weight)
    one, none = [1, 1], [0, 0]
    wanted = [False, True, False]
    return torch.ops.aten.convolution_backward(
        grad, map, weight, None, one, none, one, False, none, 1, wanted
    )[1]


define(
    "strip_pool",
    check=_check_pool,
    reference=reference.strip_pool,
    fake=_fake_pool,
    setup_context=_save_pool,
    backward=_backward_pool,
    vmap=over_channels,
)
define(
    "strip_pool_backward",
    check=_check_pool_backward,
    reference=reference.strip_pool_backward,
    fake=_fake_pool_backward,
    setup_context=_save_pool_backward,
    backward=_backward_pool_backward,
    vmap=over_channels,
)
define(
    "strip_add_relu",
    check=_check_add_relu,
    reference=reference.strip_add_relu,
    fake=_fake_add_relu,
    setup_context=save_inputs,
    backward=_backward_add_relu,
    vmap=over_channels,
    autocast=_autocast_add_relu,
)
define(
    "strip_add_relu_backward",
    check=_check_add_relu_backward,
    reference=reference.strip_add_relu_backward,
    fake=_fake_add_relu_backward,
    setup_context=save_inputs,
    backward=_backward_add_relu_backward,
    vmap=over_channels,
)
define(
    "sigmoid_gate",
    check=_check_gate,
    reference=reference.sigmoid_gate,
    fake=_fake_gate,
    setup_context=save_inputs,
    backward=_backward_gate,
    vmap=over_channels,
    autocast=_autocast_gate,
)
define(
    "sigmoid_gate_backward",
    check=_check_gate_backward,
    reference=reference.sigmoid_gate_backward,
    fake=_fake_gate_backward,
    setup_context=save_inputs,
    backward=_backward_gate_backward,
    vmap=over_channels,
)
define(
    "strip_conv",
    check=_check_conv,
    reference=_strip_conv,
    fake=_fake_conv,
    setup_context=save_inputs,
    backward=_backward_conv,
    vmap=over_images_of(2),
    autocast=_autocast_conv,
)
