"""The upsample family: sums, concatenations and convolutions of maps and interpolated maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from stripctx._compat import same_sizes
from stripctx.ops.calls import call
from stripctx.ops.upsample_composed import Geometry
from stripctx.ops.upsample_conv import pyramid_conv as convolve

_OPS = torch.ops.stripctx

ScaleFactor: TypeAlias = float | tuple[float, float]
_Value = TypeVar("_Value")
EachLevel: TypeAlias = _Value | Sequence[_Value]  # one for all levels, or one per level

_MODES = {
    ("bilinear", False): 0,
    ("bilinear", True): 1,
    ("nearest", False): 2,
    ("nearest-exact", False): 3,
}


def pyramid_concat(
    x: Tensor,
    levels: Sequence[Tensor],
    *,
    mode: EachLevel[str] = "bilinear",
    align_corners: EachLevel[bool | None] = None,
    scale_factor: EachLevel[ScaleFactor | None] = None,
    x_index: int = 0,
) -> Tensor:
    """Concatenates a map with its pyramid levels, interpolated to the size of the map.

    PSPNet (Zhao et al., CVPR 2017), section 3.2. Equals `torch.cat([x, *up(levels)], 1)` with
    `up = F.interpolate(level, (H, W), mode=mode, align_corners=...)` and x at any position. The
    result is written once. The gradient of x is a view of the output's gradient, as for torch.cat.

    Args:
        x: (N, C, H, W).
        levels: 1 to 8 maps (N, C_l, h, w) of x's dtype; any h and w, also larger than H and W.
        mode: "bilinear", "nearest" or "nearest-exact", as in `F.interpolate`: one for all levels or
            a sequence with one per level, like the next two arguments.
        align_corners: as in `F.interpolate`; None means False and is required for "nearest" and
            "nearest-exact".
        scale_factor: the number or pair passed to `F.interpolate` in place of a size; PyTorch then
            computes coordinates from it instead of from the sizes. None: from the sizes.
        x_index: the position of x among the levels: 0 is before all of them, -1 after.

    Returns:
        (N, C + sum of C_l, H, W), in the memory format of x.

    Examples:
        >>> x, level = torch.zeros(1, 1, 1, 3), torch.tensor([[[[1.0, 3.0]]]])
        >>> pyramid_concat(x, [level], align_corners=True)[0, :, 0]
        tensor([[0., 0., 0.],
                [1., 2., 3.]])
    """
    name, maps = "pyramid_concat", list(levels)
    modes, ratios = _interpolation(name, len(maps), mode, align_corners, scale_factor)
    return call(_OPS.pyramid_concat, x, maps, modes, ratios, _place(name, x_index, len(maps)))


def pyramid_add(
    x: Tensor,
    levels: Sequence[Tensor],
    *,
    mode: EachLevel[str] = "bilinear",
    align_corners: EachLevel[bool | None] = None,
    scale_factor: EachLevel[ScaleFactor | None] = None,
) -> Tensor:
    """The sum of x and all levels, interpolated to the size of x. One read of x, one write.

    The top-down path of feature pyramids (Lin et al., CVPR 2017, fig. 3); the fusion in HRNet
    (Wang et al., TPAMI 2020, section 3) before its ReLU. Saves nothing for the backward pass.

    Args:
        x: (N, C, H, W).
        levels: 1 to 8 maps (N, C, h, w) of x's dtype; any h and w, also larger than H and W.
        mode, align_corners, scale_factor: see `pyramid_concat`.

    Returns:
        (N, C, H, W), in the memory format of x.

    Examples:
        >>> x, level = torch.full((1, 1, 1, 3), -2.0), torch.tensor([[[[1.0, 3.0]]]])
        >>> pyramid_add(x, [level], align_corners=True)
        tensor([[[[-1.,  0.,  1.]]]])
    """
    maps = list(levels)
    interpolation = _interpolation("pyramid_add", len(maps), mode, align_corners, scale_factor)
    size = list(x.shape[2:])
    return call(_OPS.pyramid_taps_add, x, maps, size, [1, 1], [0, 0], [1, 1], *interpolation)


def pyramid_add_relu(
    x: Tensor,
    levels: Sequence[Tensor],
    *,
    mode: EachLevel[str] = "bilinear",
    align_corners: EachLevel[bool | None] = None,
    scale_factor: EachLevel[ScaleFactor | None] = None,
) -> Tensor:
    """The ReLU of the sum of x and all levels, interpolated to the size of x.

    The short-range branch of SPNet's mixed pooling module (Hou et al., CVPR 2020, section 3.2)
    before its last convolution; the fusion in HRNet. One read of x, one write. Saves only its
    output for the backward pass.

    Args:
        x: (N, C, H, W).
        levels: 1 to 8 maps (N, C, h, w) of x's dtype; any h and w, also larger than H and W.
        mode, align_corners, scale_factor: see `pyramid_concat`.

    Returns:
        (N, C, H, W), in the memory format of x.

    Examples:
        >>> x, level = torch.full((1, 1, 1, 3), -2.0), torch.tensor([[[[1.0, 3.0]]]])
        >>> pyramid_add_relu(x, [level], align_corners=True)
        tensor([[[[0., 0., 1.]]]])
    """
    maps = list(levels)
    interpolation = _interpolation("pyramid_add_relu", len(maps), mode, align_corners, scale_factor)
    return call(_OPS.pyramid_add_relu, x, maps, *interpolation)


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
    """The convolution of `pyramid_concat(x, levels, ...)`, without the concatenation.

    Interpolation and convolution are linear, so each level is convolved at its own resolution: a
    1x1 convolution computes the kernel's taps, small maps that are interpolated and added to the
    convolution of x. The result is exact up to rounding, and the concatenation is never allocated.
    A level at 1/s of the resolution takes 1/s^2 of the multiply-adds.

    Args:
        x: (N, C, H, W).
        levels: 1 to 8 maps (N, C_l, h, w) of x's dtype; any h and w. Levels of x's size are
            convolved together with x.
        weight: (O, C + sum of C_l, kh, kw), over the channels of the concatenation.
        bias: (O,) or None.
        padding: zeros on each side, an integer or (rows, columns).
        dilation: an integer or (rows, columns).
        mode, align_corners, scale_factor, x_index: see `pyramid_concat`.

    Returns:
        (N, O, H + 2 * padding - dilation * (kh - 1), likewise for W).

    Examples:
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
    geometry = Geometry(
        place,
        pads,
        steps,
        [modes[k] for k in small],
        [ratio for k in small for ratio in ratios[2 * k : 2 * k + 2]],
    )
    return convolve(maps, weight, bias, geometry)


def _interpolation(
    name: str,
    count: int,
    mode: EachLevel[str],
    align_corners: EachLevel[bool | None],
    scale_factor: EachLevel[ScaleFactor | None],
) -> tuple[list[int], list[float]]:
    """Each level's mode as the operators encode it, and its two ratios."""
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
    """One value per level, from a common value or a sequence."""
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
