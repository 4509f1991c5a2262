"""The strip family in standard operators (SPNet, Hou et al., CVPR 2020, eq. 1 to 4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from stripctx.reference.common import widen


def strip_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = widen(x)
    return wide.mean(3, keepdim=True).to(x.dtype), wide.mean(2, keepdim=True).to(x.dtype)


def strip_add_relu(rows: Tensor, cols: Tensor) -> Tensor:
    return (widen(rows) + widen(cols)).relu().to(rows.dtype)


def strip_conv(rows: Tensor, cols: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(strip_add_relu(rows, cols), weight)


def sigmoid_gate(x: Tensor, logits: Tensor, bias: Tensor) -> Tensor:
    gate = (widen(logits) + widen(bias)[:, None, None]).sigmoid()
    return (widen(x) * gate).to(x.dtype)
