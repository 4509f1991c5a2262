"""The height family: HANet's row gate."""

from __future__ import annotations

import torch
from torch import Tensor

from stripctx.ops.calls import call

_OPS = torch.ops.stripctx


def row_gate(x: Tensor, logits: Tensor) -> Tensor:
    """Multiplies every row of a map by its gate, one per channel. One read and one write of x.

    HANet (Choi et al., CVPR 2020), eq. 2. The L gates are interpolated to the height of the map:
    `x * F.interpolate(sigmoid(logits), H, mode="linear")[..., None]`. The sigmoid comes
    before the interpolation, as in the authors' code.

    Args:
        x: (N, C, H, W).
        logits: (N, C, L), of x's dtype; under autocast any dtype, cast to that of x.

    Returns:
        (N, C, H, W), in the memory format of x.

    Examples:
        >>> row_gate(torch.full((1, 1, 3, 1), 4.0), torch.tensor([[[-1e9, 1e9]]])).flatten()
        tensor([0., 2., 4.])
    """
    return call(_OPS.row_gate, x, logits)
