"""The encoding family in plain PyTorch (Zhang et al., Deep TEN, CVPR 2017, eq. 2 to 4, and Context
Encoding, CVPR 2018), forward and explicit backward: the definition that the native kernels are held
to, and what every other device runs.

With d_ik = |x_i - c_k|^2 and a = softmax over k of s_k d_ik: E_k = sum_i a_ik (x_i - c_k).

Shapes: x (N, D, H, W), L = H*W positions; codewords (K, D); scale (K); encoded, grad (N, K, D);
assignments (N, L, K); gate (N, C). Half types are computed in float32 and rounded once.

Everything linear in x and c is taken about the mean codeword, which changes nothing but the
rounding: features with a large common offset cost no digits. Distances come from `cdist`, which
subtracts before it squares. No tensor of N*L*K*D elements exists.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stripctx.layout import memory_format
from stripctx.reference.common import widen

Distances = Callable[[Tensor, Tensor], Tensor]


def direct_distances(positions: Tensor, codewords: Tensor) -> Tensor:
    """|x_i - c_k|^2, (N, L, K), by subtraction: as exact as its dtype."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(positions, codewords, compute_mode=mode).square()


def expanded_distances(positions: Tensor, codewords: Tensor) -> Tensor:
    """The same by |x|^2 - 2 x.c + |c|^2, which autograd can differentiate any number of times."""
    squares = positions.square().sum(-1, keepdim=True) + codewords.square().sum(-1)
    return squares - 2 * (positions @ codewords.mT)


def _centre(codewords: Tensor) -> Tensor:
    """The mean codeword, 0 where it is not finite: there is nothing to gain then."""
    mean = codewords.detach().mean(0)
    return torch.where(mean.isfinite(), mean, 0)


def _positions(x: Tensor) -> Tensor:
    """(N, D, H, W) as (N, L, D)."""
    return x.flatten(2).mT


def encode(x: Tensor, codewords: Tensor, scale: Tensor, allow_tf32: bool) -> Tensor:
    dtype = codewords.dtype
    x, codewords, scale = widen(x), widen(codewords), widen(scale)
    positions, centre = _positions(x), _centre(codewords)
    assignments = (direct_distances(positions, codewords) * scale).softmax(-1)
    encoded = assignments.mT @ (positions - centre)
    encoded = encoded - assignments.sum(1)[..., None] * (codewords - centre)
    return encoded.to(dtype)


def encode_backward(
    grad: Tensor, x: Tensor, codewords: Tensor, scale: Tensor, allow_tf32: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_codewords, grad_scale = encode_gradients(
        widen(grad), widen(x), widen(codewords), widen(scale), direct_distances
    )
    return (
        grad_x.to(x.dtype).contiguous(memory_format=memory_format(x)),
        grad_codewords.to(codewords.dtype),
        grad_scale.to(scale.dtype),
    )


def encode_gradients(
    grad: Tensor, x: Tensor, codewords: Tensor, scale: Tensor, distances_of: Distances
) -> tuple[Tensor, Tensor, Tensor]:
    """With G = grad: dA_ik = (x_i - c_k).G_k; dP = a (dA - sum_k a dA); q = s dP;

    grad_x_i = sum_k a_ik G_k + 2 sum_k q_ik (x_i - c_k)
    grad_c_k = -(sum_i a_ik) G_k - 2 sum_i q_ik (x_i - c_k)
    grad_s_k = sum_i dP_ik d_ik, without dividing by s.
    """
    positions, centre = _positions(x), _centre(codewords)
    distances = distances_of(positions, codewords)
    assignments = (distances * scale).softmax(-1)
    centred, codes = positions - centre, codewords - centre
    toward = centred @ grad.mT - (codes * grad).sum(-1)[:, None]
    slopes = assignments * (toward - (assignments * toward).sum(-1, keepdim=True))
    weights = 2 * scale * slopes
    grad_x = assignments @ grad + weights.sum(-1, keepdim=True) * centred - weights @ codes
    grad_codes = weights.sum(1)[..., None] * codes - weights.mT @ centred
    grad_codes = (grad_codes - assignments.sum(1)[..., None] * grad).sum(0)
    return grad_x.mT.reshape(x.shape), grad_codes, (slopes * distances).sum((0, 1))


def channel_gate(x: Tensor, gate: Tensor) -> Tensor:
    wide = widen(x)
    out = (wide + wide * widen(gate)[..., None, None]).relu()
    return out.to(x.dtype).contiguous(memory_format=memory_format(x))


def channel_gate_backward(grad: Tensor, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    wide, factor = widen(x), widen(gate)[..., None, None]
    passed = torch.where(wide + wide * factor <= 0, 0, widen(grad))
    grad_x = (passed + passed * factor).to(x.dtype)
    grad_gate = (passed * wide).sum((2, 3)).to(gate.dtype)
    return grad_x.contiguous(memory_format=memory_format(x)), grad_gate
