"""Scopes in which F.interpolate is lazy, in eager mode and under torch.compile.

Scopes are per thread, as is torch's stack of modes. A nested scope may return lazy tensors to the
enclosing one; the outermost returns tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stripctx import _compat, functional
from stripctx.fusion import consumers as consumers
from stripctx.fusion import labels as labels
from stripctx.fusion.lazy import CONSUMERS, Lazy, is_lazy, made
from stripctx.fusion.lazy_maps import Level
from stripctx.ops import checks

MODES = ("bilinear", "nearest", "nearest-exact")
_POOLS = (F.adaptive_avg_pool2d, F.interpolate)


class _Depth(threading.local):
    def __init__(self) -> None:
        """Called in every thread. A class attribute would not do: torch.compile guards on the
        instance's attributes, and the first assignment would add one during the trace."""
        self.scopes = 0


_depth = _Depth()


class InterpolationWaits(TorchFunctionMode):
    """A mode in which F.interpolate to a larger size returns a `Level`."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.Tensor.unflatten:
            function = torch.unflatten  # the method calls super(), which Dynamo cannot trace here
        if function is F.interpolate:
            level = _level(*args, **kwargs)
            if level is not None:
                return level
        if function in _POOLS and torch.onnx.is_in_onnx_export():
            pooled = _pooled(function, *args, **kwargs)
            if pooled is not None:
                return pooled
        if function in CONSUMERS and any(map(is_lazy, args)):
            # torch itself would dispatch to Lazy; Dynamo does not look into tuples
            return Lazy.__torch_function__(function, types, args, kwargs)
        return function(*args, **kwargs)


def _level(
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Level | None:
    """The lazy result of a call of F.interpolate; None for arguments that are left to torch."""
    if isinstance(input, Level) and input.waits and _pair(size) == tuple(input.shape[2:]):
        return input  # resized to its own size
    input = made(input)
    if not isinstance(input, Tensor) or input.dim() != 4 or mode not in MODES or antialias:
        return None
    if input.dtype not in checks.DTYPES or input.layout is not torch.strided or not input.numel():
        return None
    if (align_corners is not None) and mode != "bilinear":
        return None
    if input.is_cuda and torch.are_deterministic_algorithms_enabled():
        return None  # torch then uses a decomposition
    if _compat.differentiates_functionally():
        return None  # which the operators refuse
    if (size is None) == (scale_factor is None):
        return None
    sizes = input.shape[2:]
    if size is not None:
        if recompute_scale_factor is not None:
            return None
        pair = _pair(size)
        if len(pair) != 2 or any(isinstance(one, Tensor) for one in pair):
            return None
        factors = None
    else:
        factors = _pair(scale_factor)
        if len(factors) != 2 or not all(isinstance(one, (int, float)) for one in factors):
            return None
        factors = (float(factors[0]), float(factors[1]))
        pair = tuple(_scaled(cells, factor) for cells, factor in zip(sizes, factors, strict=True))
        if recompute_scale_factor:
            factors = None
    if any(extent < cells for extent, cells in zip(pair, sizes, strict=True)):
        return None
    return Level(input, pair, mode, align_corners, factors)


def _scaled(cells: Any, factor: float) -> Any:
    """floor(cells * factor), also for symbolic sizes."""
    return cells * int(factor) if factor.is_integer() else torch.sym_int(cells * factor)


def _pooled(
    function: Any, input: Any = None, size: Any = None, *rest: Any, **options: Any
) -> Tensor | None:
    """Adaptive average pooling (or interpolation by "area") by pyramid_pool, for torch.onnx.export,
    whose own translation holds for the example's sizes only. None for arguments left to torch."""
    if function is F.adaptive_avg_pool2d:
        size = options.pop("output_size", size)
    elif function is not F.interpolate or options.pop("mode", None) != "area":
        return None
    pair, input = _pair(size), made(input)
    if rest or any(options.values()) or not isinstance(input, Tensor) or input.dim() != 4:
        return None
    if len(pair) != 2 or pair == (1, 1) or not all(isinstance(one, int) for one in pair):
        return None
    return functional.pyramid_pool(input, [pair])[0] if input.dtype in checks.DTYPES else None


def _pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


@contextmanager
def fusing() -> Iterator[None]:
    """`fuse` for code outside modules: a context in which F.interpolate is lazy, so that a
    convolution over a concatenation, a sum or a loss can take the small maps.

    A lazy tensor that leaves the block is computed when it is used.

    Examples:
        >>> import torch.nn.functional as F
        >>> a, b = torch.randn(2, 1, 8, 64, 64), torch.randn(1, 32, 32, 32)
        >>> weight = torch.randn(64, 48, 3, 3)
        >>> with fusing():
        ...     up = F.interpolate(b, size=a[0].shape[2:], mode="bilinear")
        ...     y = F.conv2d(torch.cat([a[0], up, a[1]], 1), weight, padding=1)
        >>> y.shape
        torch.Size([1, 64, 64, 64])
    """
    _depth.scopes += 1
    try:
        with InterpolationWaits():
            yield
    finally:
        _depth.scopes -= 1


def is_open() -> bool:
    """Whether this thread is inside a Scope or Boundary, to which lazy tensors may be returned."""
    return _depth.scopes > 0


def run(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], catches: bool
) -> Any:
    """Runs a module's own forward as a Scope (`catches`) or a Boundary. Returns tensors, or lazy
    ones if an enclosing module is one too."""
    inner = is_open()
    _depth.scopes += 1
    try:
        if catches:
            with InterpolationWaits():
                result = forward(*args, **kwargs)
        else:
            result = forward(*args, **kwargs)
    finally:
        _depth.scopes -= 1
    return result if inner else kept(result)


def kept(value: Any) -> Any:
    """The result of a forward with lazy tensors computed, in the same containers."""
    if isinstance(value, Lazy):
        return value.tensor()
    if isinstance(value, Mapping):
        for key, one in value.items():
            new = kept(one)
            if new is not one:
                value[key] = new  # type: ignore[index]
        return value
    if isinstance(value, (list, tuple)):
        new = [kept(one) for one in value]
        if all(a is b for a, b in zip(new, value, strict=True)):
            return value
        if isinstance(value, list):
            value[:] = new
            return value
        return type(value)(*new) if hasattr(value, "_fields") else type(value)(new)
    return value
