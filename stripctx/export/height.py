"""The height family in standard operators (HANet, Choi et al., CVPR 2020, eq. 2)."""

from __future__ import annotations

from torch import Tensor

from stripctx.export.axes import interpolation
from stripctx.reference.common import widen
from stripctx.reference.upsample import BILINEAR


def row_gate(x: Tensor, logits: Tensor) -> Tensor:
    gate = widen(logits).sigmoid()
    rows = gate @ interpolation(gate.size(2), x.size(2), BILINEAR, 0.0, gate).T
    return (widen(x) * rows[..., None]).to(x.dtype)
