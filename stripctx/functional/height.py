"""The height family: HANet's gate a row."""

from __future__ import annotations

import torch
from torch import Tensor

_OPS = torch.ops.stripctx


def row_gate(x: Tensor, logits: Tensor) -> Tensor:
    """x * rows: every row of a map times its gate, one number a channel. Reads x, writes once.

    HANet (Choi et al., CVPR 2020), eq. 2. The gates of L rows are interpolated to the map's H:
    `x * F.interpolate(sigmoid(logits), H, mode="linear")[..., None]`. The sigmoid comes first, as
    in the authors' code.

    Args:
        x: (N, C, H, W).
        logits: (N, C, L), of x's dtype; under autocast any dtype, cast to that of x.

    Returns:
        (N, C, H, W), in the memory format of x.

    Examples:
        >>> row_gate(torch.full((1, 1, 3, 1), 4.0), torch.tensor([[[-1e9, 1e9]]])).flatten()
        tensor([0., 2., 4.])
    """
    return _OPS.row_gate(x, logits)
