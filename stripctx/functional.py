"""Every function a user may call. Maps are (N, C, H, W); dtypes float64, float32, float16 and
bfloat16; contiguous and channels_last run natively and the result keeps the input's format.

All functions are differentiable twice and bit-reproducible: the same input gives the same bits.
Sums are taken in float32 (float64 for float64) and rounded once. A refused argument raises
ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

import stripctx.ops  # noqa: F401  (defines the operators)
from stripctx._compat import same_sizes
from stripctx.ops import upsample_conv

__all__ = [
    "channel_gate",
    "encode",
    "pyramid_add",
    "pyramid_add_relu",
    "pyramid_concat",
    "pyramid_conv",
    "pyramid_pool",
    "row_gate",
    "row_pool",
    "sigmoid_gate",
    "strip_add_relu",
    "strip_gate",
    "strip_pool",
]

_OPS = torch.ops.stripctx

ScaleFactor: TypeAlias = float | tuple[float, float]
_Value = TypeVar("_Value")
EachLevel: TypeAlias = _Value | Sequence[_Value]  # one for all levels of a pyramid, or one a level

_MODES = {
    ("bilinear", False): 0,
    ("bilinear", True): 1,
    ("nearest", False): 2,
    ("nearest-exact", False): 3,
}


def strip_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means over every row and every column of a map, in one read.

    SPNet (Hou et al., CVPR 2020), eq. 1 and 2. Equals `x.mean(3, keepdim=True)` and
    `x.mean(2, keepdim=True)`, which are `adaptive_avg_pool2d` to (None, 1) and to (1, None).

    Args:
        x: (N, C, H, W).

    Returns:
        rows (N, C, H, 1), the means over W; cols (N, C, 1, W), the means over H.

    Example:
        >>> rows, cols = strip_pool(torch.arange(6.0).view(1, 1, 2, 3))
        >>> rows.flatten(), cols.flatten()
        (tensor([1., 4.]), tensor([1.5000, 2.5000, 3.5000]))
    """
    return _OPS.strip_pool(x)


def strip_add_relu(rows: Tensor, cols: Tensor) -> Tensor:
    """relu(rows + cols), both expanded to the whole map, in one write.

    SPNet (Hou et al., CVPR 2020), eq. 3, and the rectifier after it.

    Args:
        rows: (N, C, H, 1).
        cols: (N, C, 1, W), of the same dtype.

    Returns:
        (N, C, H, W).

    Example:
        >>> strip_add_relu(torch.tensor([[[[1.0], [-2.0]]]]), torch.tensor([[[[0.5, 3.0]]]]))
        tensor([[[[1.5000, 4.0000],
                  [0.0000, 1.0000]]]])
    """
    return _OPS.strip_add_relu(rows, cols)


def sigmoid_gate(x: Tensor, logits: Tensor, bias: Tensor | None = None) -> Tensor:
    """x * sigmoid(logits + bias): reads two maps, writes one, keeps nothing but its inputs.

    SPNet (Hou et al., CVPR 2020), eq. 4; `bias` is that of the 1x1 convolution before the sigmoid.

    Args:
        x: (N, C, H, W).
        logits: (N, C, H, W), of the dtype of x; under autocast any dtype, cast to that of x.
        bias: (C,), likewise; None means 0.

    Returns:
        (N, C, H, W), in the memory format of x.

    Example:
        >>> sigmoid_gate(torch.full((1, 1, 1, 2), 4.0), torch.zeros(1, 1, 1, 2))
        tensor([[[[2., 2.]]]])
    """
    if bias is None:
        bias = x.new_zeros(x.shape[1:2])
    return _OPS.sigmoid_gate(x, logits, bias)


def strip_gate(
    x: Tensor, rows: Tensor, cols: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """x * sigmoid(conv1x1(relu(rows + cols))): the tail of SPNet's strip pooling module.

    SPNet (Hou et al., CVPR 2020), eq. 3 and 4. Composed of `strip_add_relu`, a library convolution
    (the floor: the GEMM) and `sigmoid_gate`, which adds the convolution's bias. Of its maps only
    the logits are kept for the backward pass.

    Args:
        x: (N, C, H, W).
        rows: (N, M, H, 1).
        cols: (N, M, 1, W).
        weight: (C, M, 1, 1).
        bias: (C,) or None.

    Returns:
        (N, C, H, W).

    Example:
        >>> x = torch.randn(2, 8, 5, 7)
        >>> rows, cols = strip_pool(x)
        >>> strip_gate(x, rows, cols, torch.randn(8, 8, 1, 1)).shape
        torch.Size([2, 8, 5, 7])
    """
    return sigmoid_gate(x, _OPS.strip_conv(rows, cols, weight), bias)


def encode(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """Softly assigns every position to K codewords and sums the residuals of each.

    With d_ik = |x_i - c_k|^2 and a_ik = softmax over k of s_k d_ik, codeword k gets the sum over
    all positions i of a_ik (x_i - c_k): Deep TEN (Zhang et al., CVPR 2017), eq. 2 to 4, with
    s = -beta. Nothing of N*L*D elements or more is ever stored beside x.

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

    Example:
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

    Example:
        >>> channel_gate(torch.tensor([[[[-1.0, 2.0]]]]), torch.tensor([[0.5]]))
        tensor([[[[0., 3.]]]])
    """
    return _OPS.channel_gate(x, gate)


def pyramid_pool(
    x: Tensor, bins: Sequence[int | tuple[int, int]], mode: str = "mean"
) -> list[Tensor]:
    """Adaptive means or maxima for all bins of a pyramid at once, in one read.

    PSPNet (Zhao et al., CVPR 2017), section 3.2. Equals `adaptive_avg_pool2d(x, b)` or
    `adaptive_max_pool2d(x, b)` for each b. A bin covers rows floor(i H / h) to ceil((i + 1) H / h),
    columns likewise: windows overlap where h does not divide H, and repeat where h > H. The maximum
    is the first of equals, and NaN if the window holds one.

    Args:
        x: (N, C, H, W), H and W at least 1; for maxima H * W below 2^31.
        bins: one to eight levels, each h x w bins (h, w), or b for (b, b).
        mode: "mean" or "max".

    Returns:
        One (N, C, h, w) a level, in the memory format of x.

    Example:
        >>> one, two = pyramid_pool(torch.arange(6.0).view(1, 1, 2, 3), (1, 2))
        >>> one.flatten(), two.flatten()
        (tensor([2.5000]), tensor([0.5000, 1.5000, 3.5000, 4.5000]))
    """
    return _pool("pyramid_pool", x, "bins", bins, mode)


def row_pool(x: Tensor, rows: int, mode: str = "mean") -> Tensor:
    """Adaptive means or maxima over bands of rows: `pyramid_pool` with the one bin (rows, 1).

    HANet (Choi et al., CVPR 2020), the width-wise pooling of section 3.1.

    Args:
        x: (N, C, H, W).
        rows: how many bands, of whole rows.
        mode: "mean" or "max".

    Returns:
        (N, C, rows).

    Example:
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
        return _OPS.pyramid_pool(x, flat)
    return _OPS.pyramid_max_pool(x, flat)[: len(pairs)]


def _is_count(value: object) -> bool:
    return isinstance(value, (int, torch.SymInt)) and value >= 1


def pyramid_concat(
    x: Tensor,
    levels: Sequence[Tensor],
    *,
    mode: EachLevel[str] = "bilinear",
    align_corners: EachLevel[bool | None] = None,
    scale_factor: EachLevel[ScaleFactor | None] = None,
    x_index: int = 0,
) -> Tensor:
    """A map and its pyramid: x and every level, interpolated to the size of x, side by side in one
    tensor that is written once.

    PSPNet (Zhao et al., CVPR 2017), section 3.2. Equals `torch.cat([x, *up(levels)], 1)`, x at any
    place of the list, with `up = F.interpolate(level, (H, W), mode=mode, align_corners=...)`. The
    gradient of x is a view of the output's, as it is for torch.cat.

    Args:
        x: (N, C, H, W).
        levels: 1 to 8 maps (N, C_l, h, w) of x's dtype; h and w from 1 up, also above H and W.
        mode: "bilinear", "nearest" or "nearest-exact", as in `F.interpolate`; one for all levels,
            or a sequence of one a level. So are the next two.
        align_corners: as in `F.interpolate`; None means False, and is all that "nearest" takes.
        scale_factor: the number or pair that `F.interpolate` was given in place of a size; torch
            then uses it, not the sizes, to find where a position reads. None: as the sizes say.
        x_index: the place of x among the levels, 0 before all of them, -1 behind.

    Returns:
        (N, C + sum of C_l, H, W), in the memory format of x.

    Example:
        >>> x, level = torch.zeros(1, 1, 1, 3), torch.tensor([[[[1.0, 3.0]]]])
        >>> pyramid_concat(x, [level], align_corners=True)[0, :, 0]
        tensor([[0., 0., 0.],
                [1., 2., 3.]])
    """
    name, maps = "pyramid_concat", list(levels)
    modes, ratios = _interpolation(name, len(maps), mode, align_corners, scale_factor)
    return _OPS.pyramid_concat(x, maps, modes, ratios, _place(name, x_index, len(maps)))


def pyramid_add(
    x: Tensor,
    levels: Sequence[Tensor],
    *,
    mode: EachLevel[str] = "bilinear",
    align_corners: EachLevel[bool | None] = None,
    scale_factor: EachLevel[ScaleFactor | None] = None,
) -> Tensor:
    """x + every level interpolated to the size of x: reads x, writes once, keeps nothing.

    The top-down path of feature pyramids (Lin et al., CVPR 2017, fig. 3), the fusion of HRNet
    (Wang et al., TPAMI 2020, section 3) before its rectifier.

    Args:
        x: (N, C, H, W).
        levels: 1 to 8 maps (N, C, h, w) of x's dtype; h and w from 1 up, also above H and W.
        mode, align_corners, scale_factor: see `pyramid_concat`.

    Returns:
        (N, C, H, W), in the memory format of x.

    Example:
        >>> x, level = torch.full((1, 1, 1, 3), -2.0), torch.tensor([[[[1.0, 3.0]]]])
        >>> pyramid_add(x, [level], align_corners=True)
        tensor([[[[-1.,  0.,  1.]]]])
    """
    maps = list(levels)
    interpolation = _interpolation("pyramid_add", len(maps), mode, align_corners, scale_factor)
    size = list(x.shape[2:])
    return _OPS.pyramid_taps_add(x, maps, size, [1, 1], [0, 0], [1, 1], *interpolation)


def pyramid_add_relu(
    x: Tensor,
    levels: Sequence[Tensor],
    *,
    mode: EachLevel[str] = "bilinear",
    align_corners: EachLevel[bool | None] = None,
    scale_factor: EachLevel[ScaleFactor | None] = None,
) -> Tensor:
    """relu(x + every level interpolated to the size of x): reads x, writes once.

    The pyramid arm of SPNet's mixed pooling module (Hou et al., CVPR 2020), section 3.2, before its
    last convolution; HRNet's fusion. Keeps its output for the backward pass, and nothing else.

    Args:
        x: (N, C, H, W).
        levels: 1 to 8 maps (N, C, h, w) of x's dtype; h and w from 1 up, also above H and W.
        mode, align_corners, scale_factor: see `pyramid_concat`.

    Returns:
        (N, C, H, W), in the memory format of x.

    Example:
        >>> x, level = torch.full((1, 1, 1, 3), -2.0), torch.tensor([[[[1.0, 3.0]]]])
        >>> pyramid_add_relu(x, [level], align_corners=True)
        tensor([[[[0., 0., 1.]]]])
    """
    maps = list(levels)
    interpolation = _interpolation("pyramid_add_relu", len(maps), mode, align_corners, scale_factor)
    return _OPS.pyramid_add_relu(x, maps, *interpolation)


def pyramid_conv(
    x: Tensor,
    levels: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mode: EachLevel[str] = "bilinear",
    align_corners: EachLevel[bool | None] = None,
    scale_factor: EachLevel[ScaleFactor | None] = None,
    x_index: int = 0,
) -> Tensor:
    """The convolution over `pyramid_concat(x, levels, ...)`, without the concatenation.

    Interpolation and convolution are both linear, so a level's share of the convolution is taken
    on the level itself: a 1x1 convolution to the kernel's taps, whose small maps are interpolated
    and added to the convolution of x. It is exact but for the rounding, and the larger map never
    exists. A level at 1/s of the resolution costs 1/s^2 of the products.

    Args:
        x: (N, C, H, W).
        levels: 1 to 8 maps (N, C_l, h, w) of x's dtype; h and w from 1 up. Those of x's own size
            are convolved with x.
        weight: (O, C + sum of C_l, kh, kw), over the channels of the concatenation.
        bias: (O,) or None.
        padding: zeros on each side, an integer or (rows, columns).
        dilation: an integer or (rows, columns).
        mode, align_corners, scale_factor, x_index: see `pyramid_concat`.

    Returns:
        (N, O, H + 2 * padding - dilation * (kh - 1), likewise for W).

    Example:
        >>> x, levels = torch.randn(2, 8, 9, 7), [torch.randn(2, 2, b, b) for b in (1, 2, 3, 6)]
        >>> weight = torch.randn(4, 16, 3, 3)
        >>> pyramid_conv(x, levels, weight, padding=1, align_corners=True).shape
        torch.Size([2, 4, 9, 7])
    """
    name, maps = "pyramid_conv", list(levels)
    modes, ratios = _interpolation(name, len(maps), mode, align_corners, scale_factor)
    place = _place(name, x_index, len(maps))
    maps.insert(place, x)
    channels = [map.size(1) for map in maps]
    if weight.dim() != 4 or weight.size(1) != sum(channels):
        raise ValueError(
            f"{name}: weight must have shape (O, {sum(channels)}, kh, kw), "
            f"got {tuple(weight.shape)}"
        )
    pads, steps = _pair("padding", padding), _pair("dilation", dilation)
    small = [k for k, map in enumerate(levels) if not same_sizes(map.shape[2:], x.shape[2:])]
    geometry = upsample_conv.Geometry(
        place,
        pads,
        steps,
        [modes[k] for k in small],
        [ratio for k in small for ratio in ratios[2 * k : 2 * k + 2]],
    )
    return upsample_conv.pyramid_conv(maps, weight, bias, geometry)


def _interpolation(
    name: str,
    count: int,
    mode: EachLevel[str],
    align_corners: EachLevel[bool | None],
    scale_factor: EachLevel[ScaleFactor | None],
) -> tuple[list[int], list[float]]:
    """The operators' code of each level's mode, and its two ratios."""
    names = _each(name, "mode", mode, count, str)
    corners = _each(name, "align_corners", align_corners, count, (bool, type(None)))
    modes: list[int] = []
    for value, aligned in zip(names, corners, strict=True):
        code = _MODES.get((value, bool(aligned)))
        if code is None or (value != "bilinear" and aligned is not None):
            raise ValueError(
                f'{name}: mode must be "bilinear", "nearest" or "nearest-exact", the last two '
                f"without align_corners, got {value!r} and {aligned}"
            )
        modes.append(code)
    if scale_factor is None:
        return modes, [0.0] * (2 * count)
    one = (int, float, type(None))
    if isinstance(scale_factor, tuple) and len(scale_factor) == 2 and count != 2:
        pairs: list[Any] = [scale_factor] * count  # one pair for all levels
    else:
        pairs = _each(name, "scale_factor", scale_factor, count, (*one, tuple, list))
    ratios: list[float] = []
    for factor, code in zip(pairs, modes, strict=True):
        pair = factor if isinstance(factor, (tuple, list)) else (factor, factor)
        if len(pair) != 2 or any(f is not None and not f > 0 for f in pair):
            raise ValueError(
                f"{name}: scale_factor must be positive, a number or a pair of them, got {factor}"
            )
        unused = code == _MODES["bilinear", True]
        ratios += [0.0 if f is None or unused else 1.0 / f for f in pair]
    return modes, ratios


def _each(name: str, argument: str, value: Any, count: int, one: Any) -> list[Any]:
    """A value for each level: the one that was given for all of them, or the sequence."""
    if isinstance(value, one) and not isinstance(value, (tuple, list)):
        return [value] * count
    if isinstance(value, (str, bytes)) or not isinstance(value, (tuple, list)):
        raise ValueError(f"{name}: {argument} must be one value or one a level, got {value!r}")
    if len(value) != count or not all(isinstance(each, one) for each in value):
        raise ValueError(
            f"{name}: {argument} must be one value or one for each of {count} levels, got {value}"
        )
    return list(value)


def _place(name: str, x_index: int, count: int) -> int:
    if not -count - 1 <= x_index <= count:
        raise ValueError(f"{name}: x_index must be from {-count - 1} to {count}, got {x_index}")
    return x_index if x_index >= 0 else x_index + count + 1


def _pair(argument: str, value: int | tuple[int, int]) -> list[int]:
    pair = [value, value] if isinstance(value, int) else value
    if isinstance(pair, str) or len(pair) != 2:
        raise ValueError(
            f"pyramid_conv: {argument} must be an integer or a pair of them, got {value!r}"
        )
    return list(pair)


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

    Example:
        >>> row_gate(torch.full((1, 1, 3, 1), 4.0), torch.tensor([[[-1e9, 1e9]]])).flatten()
        tensor([0., 2., 4.])
    """
    return _OPS.row_gate(x, logits)
