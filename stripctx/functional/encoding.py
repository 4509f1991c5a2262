"""The encoding family: EncNet's encoding layer and channel gate."""

from __future__ import annotations

import torch
from torch import Tensor

from stripctx.ops.calls import call

_OPS = torch.ops.stripctx


def encode(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """Softly assigns every position to K codewords and sums the residuals of each.

    With d_ik = |x_i - c_k|^2 and a_ik = softmax over k of s_k d_ik, codeword k gets the sum over
    all positions i of a_ik (x_i - c_k): Deep TEN (Zhang et al., CVPR 2017), eq. 2 to 4, with
    s = -beta. No temporary of `N*L*D` elements or more is allocated.

    The result has the dtype of the parameters: that of x, or float32 if x is float16 or bfloat16,
    which keeps the full precision of the sums. Under autocast, x is cast as by conv2d and half
    precision parameters to float32. Products on CUDA tensor cores round float32 operands to tf32 if
    `torch.backends.cuda.matmul.allow_tf32` is set, and split them otherwise.

    Args:
        x: (N, D, H, W) or (N, D, L).
        codewords: (K, D), K at least 1.
        scale: (K,), of the dtype of codewords, with any sign or 0. Negative values favour near
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
    return call(_OPS.encode, x, codewords, scale, _tf32_allowed())


def _tf32_allowed() -> bool:
    """Whether float32 products may use tf32 on CUDA. Only the old setting can be traced by
    torch.compile; only the new one can be read regardless of which of the two was set."""
    matmul = torch.backends.cuda.matmul
    if torch.compiler.is_compiling():
        return bool(matmul.allow_tf32)
    return bool(matmul.fp32_precision == "tf32")


def channel_gate(x: Tensor, gate: Tensor) -> Tensor:
    """relu(x + x * gate) with one gate per channel, in one read and one write.

    Context Encoding (Zhang et al., CVPR 2018), section 3.1: features scaled by global context, with
    the residual connection and the ReLU that follow.

    Args:
        x: (N, C, H, W).
        gate: (N, C), of the dtype of x; under autocast any dtype, cast to that of x.

    Returns:
        (N, C, H, W), in the memory format of x.

    Examples:
        >>> channel_gate(torch.tensor([[[[-1.0, 2.0]]]]), torch.tensor([[0.5]]))
        tensor([[[[0., 3.]]]])
    """
    return call(_OPS.channel_gate, x, gate)
