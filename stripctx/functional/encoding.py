"""The encoding family: EncNet's encoding layer and channel gate."""

from __future__ import annotations

import torch
from torch import Tensor

_OPS = torch.ops.stripctx


def encode(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """Softly assigns every position to K codewords and sums the residuals of each.

    With d_ik = |x_i - c_k|^2 and a_ik = softmax over k of s_k d_ik, codeword k gets the sum over
    all positions i of a_ik (x_i - c_k): Deep TEN (Zhang et al., CVPR 2017), eq. 2 to 4, with
    s = -beta. Nothing of `N*L*D` elements or more is ever stored beside x.

    The result has the dtype of the parameters. They have that of x, or are float32 where x is
    float16 or bfloat16, which keeps every digit of the sums; under autocast x is cast as conv2d
    casts it and half parameters to float32. Products on CUDA's tensor cores round float32 operands
    to tf32 where `torch.backends.cuda.matmul.allow_tf32` permits it, and split them otherwise.

    Args:
        x: (N, D, H, W) or (N, D, L).
        codewords: (K, D), K at least 1.
        scale: (K,), of the dtype of codewords; any sign, 0 too. Negative ones prefer near
            codewords.

    Returns:
        (N, K, D), a sum over positions, not a mean.

    Examples:
        >>> x = torch.tensor([[[1.0, 3.0]]])  # N = D = 1, L = 2
        >>> encode(x, torch.tensor([[0.0], [2.0]]), torch.zeros(2)).flatten()
        tensor([2., 0.])
    """
    if x.dim() == 3:
        x = x.unsqueeze(3)
    return _OPS.encode(x, codewords, scale, _tf32_allowed())


def _tf32_allowed() -> bool:
    """What the user allows CUDA's float32 products. Only the old name of the setting can be traced,
    and only the new one can be read whichever of the two was set."""
    matmul = torch.backends.cuda.matmul
    if torch.compiler.is_compiling():
        return bool(matmul.allow_tf32)
    return bool(matmul.fp32_precision == "tf32")


def channel_gate(x: Tensor, gate: Tensor) -> Tensor:
    """relu(x + x * gate), one gate a channel, in one read and one write.

    Context Encoding (Zhang et al., CVPR 2018), section 3.1: features scaled by what the whole image
    holds, with the shortcut around them and the rectifier after it.

    Args:
        x: (N, C, H, W).
        gate: (N, C), of the dtype of x; under autocast any dtype, cast to that of x.

    Returns:
        (N, C, H, W), in the memory format of x.

    Examples:
        >>> channel_gate(torch.tensor([[[[-1.0, 2.0]]]]), torch.tensor([[0.5]]))
        tensor([[[[0., 3.]]]])
    """
    return _OPS.channel_gate(x, gate)
