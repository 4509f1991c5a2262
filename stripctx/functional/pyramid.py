"""The pyramid family: PSPNet's adaptive pooling, HANet's row pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stripctx import _compat
from stripctx.ops.calls import call

_OPS = torch.ops.stripctx


def pyramid_pool(
    x: Tensor, bins: Sequence[int | tuple[int, int]], mode: str = "mean"
) -> list[Tensor]:
    """Adaptive means or maxima for all bins of a pyramid, with one read of x.

    PSPNet (Zhao et al., CVPR 2017), section 3.2. Equals `adaptive_avg_pool2d(x, b)` or
    `adaptive_max_pool2d(x, b)` for each b. Bin i covers rows floor(i H / h) to
    ceil((i + 1) H / h) - 1, likewise for columns: windows overlap if h does not divide H, and
    repeat if h > H. The maximum takes the first of equal values, and is NaN if the window contains
    NaN.

    Args:
        x: (N, C, H, W), H and W at least 1; for "max", H * W below 2^31.
        bins: one to eight levels, each h x w bins (h, w), or b for (b, b).
        mode: "mean" or "max".

    Returns:
        One (N, C, h, w) per level, in the memory format of x.

    Examples:
        >>> one, two = pyramid_pool(torch.arange(6.0).view(1, 1, 2, 3), (1, 2))
        >>> one.flatten(), two.flatten()
        (tensor([2.5000]), tensor([0.5000, 1.5000, 3.5000, 4.5000]))
    """
    return _pool("pyramid_pool", x, "bins", bins, mode)


def row_pool(x: Tensor, rows: int, mode: str = "mean") -> Tensor:
    """Adaptive means or maxima over bands of rows: `pyramid_pool` with the single bin (rows, 1).

    HANet (Choi et al., CVPR 2020), the width-wise pooling of section 3.1.

    Args:
        x: (N, C, H, W).
        rows: the number of bands.
        mode: "mean" or "max".

    Returns:
        (N, C, rows).

    Examples:
        >>> row_pool(torch.arange(6.0).view(1, 1, 2, 3), 2, "max")
        tensor([[[2., 5.]]])
    """
    if not _is_count(rows):
        raise ValueError(f"row_pool: rows must be a positive integer, got {rows}")
    return _pool("row_pool", x, "rows", [(rows, 1)], mode)[0].squeeze(3)


def _pool(
    name: str, x: Tensor, argument: str, bins: Sequence[int | tuple[int, int]], mode: str
) -> list[Tensor]:
    if mode not in ("mean", "max"):
        raise ValueError(f'{name}: mode must be "mean" or "max", got {mode!r}')
    pairs = [tuple(b) if isinstance(b, (tuple, list)) else (b, b) for b in bins]
    if not pairs or not all(len(pair) == 2 and all(map(_is_count, pair)) for pair in pairs):
        raise ValueError(
            f"{name}: {argument} must be positive integers or pairs of them, at least one, "
            f"got {bins}"
        )
    flat = [size for pair in pairs for size in pair]
    if mode == "mean":
        return call(_OPS.pyramid_pool, x, flat)
    return call(_OPS.pyramid_max_pool, x, flat)[: len(pairs)]


def _is_count(value: object) -> bool:
    if isinstance(value, Tensor):  # a size, in a trace
        return _compat.is_tracing() and value.dim() == 0 and not value.is_floating_point()
    return isinstance(value, (int, torch.SymInt)) and value >= 1
