"""The strip family in plain PyTorch (SPNet, Hou et al., CVPR 2020, eq. 1 to 4), forward and
explicit backward: the definition against which the native kernels are tested, and the
implementation on other devices.

Shapes: x, grad (N, C, H, W); rows (N, C, H, 1), means over W; cols (N, C, 1, W), means over H.
Half types are computed in float32 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stripctx.layout import memory_format
from stripctx.reference.common import widen


def strip_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    format = memory_format(x)
    wide = widen(x)
    rows, cols = wide.mean(3, keepdim=True), wide.mean(2, keepdim=True)
    return (
        rows.to(x.dtype).contiguous(memory_format=format),
        cols.to(x.dtype).contiguous(memory_format=format),
    )


def strip_pool_backward(grad_rows: Tensor, grad_cols: Tensor, channels_last: bool) -> Tensor:
    format = torch.channels_last if channels_last else torch.contiguous_format
    height, width = grad_rows.size(2), grad_cols.size(3)
    grad_x = widen(grad_rows) / max(width, 1) + widen(grad_cols) / max(height, 1)
    return grad_x.to(grad_rows.dtype).contiguous(memory_format=format)


def strip_add_relu(rows: Tensor, cols: Tensor) -> Tensor:
    format = memory_format(rows, cols)
    out = (widen(rows) + widen(cols)).relu()
    return out.to(rows.dtype).contiguous(memory_format=format)


def strip_add_relu_backward(grad: Tensor, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    format = memory_format(rows, cols)
    passed = torch.where(widen(rows) + widen(cols) <= 0, 0, widen(grad))
    return (
        passed.sum(3, keepdim=True).to(grad.dtype).contiguous(memory_format=format),
        passed.sum(2, keepdim=True).to(grad.dtype).contiguous(memory_format=format),
    )


def strip_conv(rows: Tensor, cols: Tensor, weight: Tensor) -> Tensor:
    """Test oracle of the operator, which is itself composed of others and a library product."""
    format = memory_format(rows, cols)
    out = torch.einsum("cm,nmhw->nchw", widen(weight).flatten(1), widen(strip_add_relu(rows, cols)))
    return out.to(rows.dtype).contiguous(memory_format=format)


def sigmoid_gate(x: Tensor, logits: Tensor, bias: Tensor) -> Tensor:
    gate = torch.sigmoid(widen(logits) + widen(bias)[:, None, None])
    return (widen(x) * gate).to(x.dtype).contiguous(memory_format=memory_format(x))


def sigmoid_gate_backward(
    grad: Tensor, x: Tensor, logits: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    format = memory_format(x)
    total = widen(logits) + widen(bias)[:, None, None]
    grad_x = widen(grad) * torch.sigmoid(total)
    grad_logits = (grad_x * widen(x) * torch.sigmoid(-total)).contiguous(memory_format=format)
    return (
        grad_x.to(x.dtype).contiguous(memory_format=format),
        grad_logits.to(x.dtype),
        grad_logits.sum((0, 2, 3)).to(bias.dtype),
    )
