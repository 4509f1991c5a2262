"""The encoding family in plain PyTorch (Zhang et al., Deep TEN, CVPR 2017, eq. 2 to 4, and Context
Encoding, CVPR 2018), forward and explicit backward: the definition against which the native kernels
are tested, and the implementation on other devices.

With d_ik = |x_i - c_k|^2 and a = softmax over k of s_k d_ik: E_k = sum_i a_ik (x_i - c_k).

Shapes: x (N, D, H, W), L = H*W positions; codewords (K, D); scale (K); encoded, grad (N, K, D);
assignments (N, L, K); gate (N, C). Half types are computed in float32 and rounded once.

Residuals x - c are formed one codeword at a time, so features close to a codeword that is far from
the others lose no precision, and no tensor of N*L*K*D elements is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stripctx.layout import memory_format
from stripctx.reference.common import widen


def _positions(x: Tensor) -> Tensor:
    """(N, D, H, W) as (N, L, D)."""
    return x.flatten(2).mT


def _residuals(positions: Tensor, codewords: Tensor) -> Iterator[Tensor]:
    """x_i - c_k, (N, L, D), for one k after another."""
    return (positions - codeword for codeword in codewords.unbind())


def _distances(positions: Tensor, codewords: Tensor) -> Tensor:
    """|x_i - c_k|^2, (N, L, K), by subtraction."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(positions, codewords, compute_mode=mode).square()


def encode(x: Tensor, codewords: Tensor, scale: Tensor, allow_tf32: bool) -> Tensor:
    dtype = codewords.dtype
    x, codewords, scale = widen(x), widen(codewords), widen(scale)
    positions = _positions(x)
    assignments = (_distances(positions, codewords) * scale).softmax(-1).mT
    residuals = _residuals(positions, codewords)
    encoded = [(assignments[:, k, None] @ r)[:, 0] for k, r in enumerate(residuals)]
    return torch.stack(encoded, 1).to(dtype)


def encode_backward(
    grad: Tensor, x: Tensor, codewords: Tensor, scale: Tensor, allow_tf32: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """With G = grad: dA_ik = (x_i - c_k).G_k; dP = a (dA - sum_k a dA); q = s dP;

    grad_x_i = sum_k a_ik G_k + 2 sum_k q_ik (x_i - c_k)
    grad_c_k = -(sum_i a_ik) G_k - 2 sum_i q_ik (x_i - c_k)
    grad_s_k = sum_i dP_ik d_ik, without dividing by s.
    """
    wide, codes, scales, grads = widen(x), widen(codewords), widen(scale), widen(grad)
    positions = _positions(wide)
    distances = _distances(positions, codes)
    assignments = (distances * scales).softmax(-1)
    residuals = enumerate(_residuals(positions, codes))
    toward = torch.stack([(r @ grads[:, k, :, None])[..., 0] for k, r in residuals], -1)
    slopes = _softmax_gradient(assignments, toward)
    weights = 2 * scales * slopes
    grad_x = assignments @ grads
    grad_codes = -assignments.sum(1)[..., None] * grads
    for k, r in enumerate(_residuals(positions, codes)):
        grad_x += weights[..., k, None] * r
        grad_codes[:, k] -= (weights[:, None, :, k] @ r)[:, 0]
    return (
        grad_x.mT.reshape(x.shape).to(x.dtype).contiguous(memory_format=memory_format(x)),
        grad_codes.sum(0).to(codewords.dtype),
        (slopes * distances).sum((0, 1)).to(scale.dtype),
    )


def _softmax_gradient(assignments: Tensor, toward: Tensor) -> Tensor:
    return assignments * (toward - (assignments * toward).sum(-1, keepdim=True))


def expanded_distances(positions: Tensor, codewords: Tensor) -> Tensor:
    """|x - c|^2 as |x|^2 - 2 x.c + |c|^2, which autograd can differentiate any number of times."""
    squares = positions.square().sum(-1, keepdim=True) + codewords.square().sum(-1)
    return squares - 2 * (positions @ codewords.transpose(-1, -2))


def expanded_gradients(
    grad: Tensor, x: Tensor, codewords: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The result of `encode_backward` in differentiable form: matrix products with temporaries no
    larger than x. x and the codewords are centred on the mean codeword, so that a common offset
    does not reduce the precision."""
    mean = codewords.detach().mean(0)
    centre = torch.where(mean.isfinite(), mean, 0)
    positions, codes = _positions(x) - centre, codewords - centre
    distances = expanded_distances(positions, codes)
    assignments = (distances * scale).softmax(-1)
    toward = positions @ grad.mT - (codes * grad).sum(-1)[:, None]
    slopes = _softmax_gradient(assignments, toward)
    weights = 2 * scale * slopes
    grad_x = assignments @ grad + weights.sum(-1, keepdim=True) * positions - weights @ codes
    grad_codes = weights.sum(1)[..., None] * codes - weights.mT @ positions
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
