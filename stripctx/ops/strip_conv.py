"""relu(rows + cols) under a 1x1 convolution: the middle of SPNet's strip pooling module, which no
kernel of ours replaces. The product is the library's; the operator sees to it that the rectified
map is not kept for the backward pass, where it is made again, a write, and given back before the
gradient that is as large.

Shapes: rows (N, M, H, 1); cols (N, M, 1, W); weight (C, M, 1, 1); out (N, C, H, W).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stripctx.layout import empty, memory_format
from stripctx.ops import checks
from stripctx.ops.batching import over_images_of
from stripctx.ops.contract import define, save_inputs
from stripctx.ops.strip import check_strips

OPS = torch.ops.stripctx


def _check(rows: Tensor, cols: Tensor, weight: Tensor) -> None:
    name = "strip_conv"
    check_strips(name, rows, cols)
    checks.tensor(name, "weight", weight, "(C, M, 1, 1)")
    checks.alike(name, "weight", weight, "rows", rows)
    checks.size(name, "weight", weight, (weight.size(0), rows.size(1), 1, 1))


def _strip_conv(rows: Tensor, cols: Tensor, weight: Tensor) -> Tensor:
    return _conv(OPS.strip_add_relu(rows, cols), weight)


def _fake(rows: Tensor, cols: Tensor, weight: Tensor) -> Tensor:
    shape = (rows.size(0), weight.size(0), rows.size(2), cols.size(3))
    return empty(shape, rows, memory_format(rows, cols))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The weight's gradient first: it alone needs the rectified map."""
    rows, cols, weight = ctx.saved_tensors
    grad = grad.contiguous(memory_format=memory_format(rows, cols))
    grad_weight = None
    if ctx.needs_input_grad[-1]:
        grad_weight = _conv_weight(grad, OPS.strip_add_relu(rows, cols), weight)
    grad_map = _conv(grad, weight.transpose(0, 1))
    return *OPS.strip_add_relu_backward(grad_map, rows, cols), grad_weight


def _autocast(rows: Tensor, cols: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """All as conv2d casts them; of float64 it casts nothing."""
    if torch.promote_types(rows.dtype, cols.dtype) is torch.float64:
        return rows.double(), cols.double(), weight
    dtype = torch.get_autocast_dtype(rows.device.type)
    return rows.to(dtype), cols.to(dtype), weight.to(dtype)


def _conv(map: Tensor, weight: Tensor) -> Tensor:
    """The 1x1 convolution, in the memory format of `map`, which is dense, whatever the weight's.
    The library refuses maps of no pixels."""
    if map.numel() == 0:
        return map.new_zeros((map.size(0), weight.size(0), *map.shape[2:]))
    return F.conv2d(map, weight.flatten(1)[:, :, None, None])


def _conv_weight(grad: Tensor, map: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `weight`, given those of the convolution's result and its operand."""
    if grad.numel() == 0 or map.numel() == 0:
        return torch.zeros_like(weight)
    one, none = [1, 1], [0, 0]
    wanted = [False, True, False]
    return torch.ops.aten.convolution_backward(
        grad, map, weight, None, one, none, one, False, none, 1, wanted
    )[1]


define(
    "strip_conv(Tensor rows, Tensor cols, Tensor weight) -> Tensor",
    check=_check,
    reference=_strip_conv,
    fake=_fake,
    setup_context=save_inputs,
    backward=_backward,
    vmap=over_images_of(2),
    autocast=_autocast,
)
