"""The encoding family in standard operators (Deep TEN, Zhang et al., CVPR 2017, eq. 2 to 4).

Distances are |x|^2 - 2 x.c + |c|^2, so encoding takes two matrix products. x and the codewords are
centred on the mean codeword, so that a common offset does not reduce the precision.
"""

from __future__ import annotations

from torch import Tensor

from stripctx.reference.common import widen
from stripctx.reference.encoding import expanded_distances


def encode(x: Tensor, codewords: Tensor, scale: Tensor, allow_tf32: bool) -> Tensor:
    wide = widen(codewords)
    centre = wide.mean(0)
    codes = wide - centre
    positions = widen(x).flatten(2).transpose(1, 2) - centre
    assignments = (expanded_distances(positions, codes) * widen(scale)).softmax(-1)
    encoded = assignments.transpose(1, 2) @ positions - assignments.sum(1)[..., None] * codes
    return encoded.to(codewords.dtype)


def channel_gate(x: Tensor, gate: Tensor) -> Tensor:
    wide = widen(x)
    return (wide + wide * widen(gate)[..., None, None]).relu().to(x.dtype)
