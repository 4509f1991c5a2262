"""The strip family: SPNet's strip pooling and its gate."""

from __future__ import annotations

import torch
from torch import Tensor

from stripctx.ops.calls import call

_OPS = torch.ops.stripctx


def strip_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means over every row and every column of a map, in one read.

    SPNet (Hou et al., CVPR 2020), eq. 1 and 2. Equals `x.mean(3, keepdim=True)` and
    `x.mean(2, keepdim=True)`, which are `adaptive_avg_pool2d` to (None, 1) and to (1, None).

    Args:
        x: (N, C, H, W).

    Returns:
        rows (N, C, H, 1), the means over W; cols (N, C, 1, W), the means over H.

    Examples:
        >>> rows, cols = strip_pool(torch.arange(6.0).view(1, 1, 2, 3))
        >>> rows.flatten(), cols.flatten()
        (tensor([1., 4.]), tensor([1.5000, 2.5000, 3.5000]))
    """
    return call(_OPS.strip_pool, x)


def strip_add_relu(rows: Tensor, cols: Tensor) -> Tensor:
    """relu(rows + cols), both expanded to the whole map, in one write.

    SPNet (Hou et al., CVPR 2020), eq. 3, and the ReLU after it.

    Args:
        rows: (N, C, H, 1).
        cols: (N, C, 1, W), of the same dtype.

    Returns:
        (N, C, H, W).

    Examples:
        >>> strip_add_relu(torch.tensor([[[[1.0], [-2.0]]]]), torch.tensor([[[[0.5, 3.0]]]]))
        tensor([[[[1.5000, 4.0000],
                  [0.0000, 1.0000]]]])
    """
    return call(_OPS.strip_add_relu, rows, cols)


def sigmoid_gate(x: Tensor, logits: Tensor, bias: Tensor | None = None) -> Tensor:
    """x * sigmoid(logits + bias): reads two maps, writes one, saves only its inputs.

    SPNet (Hou et al., CVPR 2020), eq. 4. `bias` is the bias of the 1x1 convolution that computes
    the logits.

    Args:
        x: (N, C, H, W).
        logits: (N, C, H, W), of the dtype of x; under autocast any dtype, cast to that of x.
        bias: (C,), of the same dtype; None means 0.

    Returns:
        (N, C, H, W), in the memory format of x.

    Examples:
        >>> sigmoid_gate(torch.full((1, 1, 1, 2), 4.0), torch.zeros(1, 1, 1, 2))
        tensor([[[[2., 2.]]]])
    """
    if bias is None:
        bias = x.new_zeros(x.shape[1:2])
    return call(_OPS.sigmoid_gate, x, logits, bias)


def strip_gate(
    x: Tensor, rows: Tensor, cols: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """x * sigmoid(conv1x1(relu(rows + cols))): the last part of SPNet's strip pooling module.

    SPNet (Hou et al., CVPR 2020), eq. 3 and 4. Composed of `strip_add_relu`, a library convolution
    and `sigmoid_gate`, which adds the convolution's bias. The logits are the only intermediate map
    saved for the backward pass.

    Args:
        x: (N, C, H, W).
        rows: (N, M, H, 1).
        cols: (N, M, 1, W).
        weight: (C, M, 1, 1).
        bias: (C,) or None.

    Returns:
        (N, C, H, W).

    Examples:
        >>> x = torch.randn(2, 8, 5, 7)
        >>> rows, cols = strip_pool(x)
        >>> strip_gate(x, rows, cols, torch.randn(8, 8, 1, 1)).shape
        torch.Size([2, 8, 5, 7])
    """
    return sigmoid_gate(x, call(_OPS.strip_conv, rows, cols, weight), bias)
