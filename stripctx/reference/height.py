"""The height family in plain PyTorch (HANet, Choi et al., CVPR 2020, eq. 2), forward and explicit
backward.

Shapes: x, out, grad (N, C, H, W); logits (N, C, L), interpolated to the H rows of the map. Half
types are computed in float32 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stripctx.layout import memory_format
from stripctx.reference.common import widen
from stripctx.reference.upsample import BILINEAR, matrix, samples


def row_gate(x: Tensor, logits: Tensor) -> Tensor:
    gate = torch.sigmoid(widen(logits))
    height = x.size(2)
    first, second, low, high = samples(gate.size(2), height, BILINEAR, 0.0, gate, height, 0)
    rows = gate.index_select(2, first) * low + gate.index_select(2, second) * high
    return (widen(x) * rows[..., None]).to(x.dtype).contiguous(memory_format=memory_format(x))


def row_gate_backward(grad: Tensor, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    wide = widen(logits)
    gate = torch.sigmoid(wide)
    rows = matrix(gate.size(2), x.size(2), BILINEAR, 0.0, gate)
    grad_x = widen(grad) * (gate @ rows.T)[..., None]
    grad_gate = (widen(grad) * widen(x)).sum(3) @ rows
    grad_logits = grad_gate * gate * torch.sigmoid(-wide)
    return (
        grad_x.to(x.dtype).contiguous(memory_format=memory_format(x)),
        grad_logits.to(logits.dtype),
    )
