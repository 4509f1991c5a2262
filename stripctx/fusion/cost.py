"""When a convolution over a pyramid pays: the one place that decides, from shapes.

A level of h x w cells under a k x k kernel costs O k^2 C products a cell on the level, and on the
map of H x W the interpolation of O k^2 taps and their sum. In the concatenation it costs O k^2 C
products a position, and the writing of C interpolated maps. Times are of one position of the map,
in products of a library's convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stripctx import _compat

# Products that take as long as one output's share of a tap (two or four cells read, weighted and
# added), and as long as writing, reading and copying one position of an interpolated map.
# `python -m benchmarks.decoders --fit` finds 34 and 340 forward, 32 and 320 with the backward pass,
# for a CPU with AVX-512 in float32. A map costs less where it stays in the caches: these err on the
# side of leaving a network as it was. None for CUDA.
TAP = 30.0
MAP = 180.0
LEAST_PRODUCTS = 2**22  # of the whole convolution: below, calls cost more than products

# Of an exported network, whose runtime interpolates by its own resizing or by products with a
# matrix along each axis: products of such a kind that take as long as one position's resizing, and
# how many products of a convolution take as long as one of them. ONNX Runtime 1.32 on a CPU.
EXPORTED_RESIZE = 64.0
EXPORTED_PRODUCT = 2.0


def pays(
    level: Sequence[int], size: Sequence[int], out_channels: int, kernel: Sequence[int]
) -> bool:
    """Whether the level (N, C, h, w) is convolved where it is, for a map of `size`."""
    batch, channels, height, width = level
    if torch.onnx.is_in_onnx_export():
        return _exported_pays(channels, (height, width), size, out_channels, list(kernel))
    positions, taps = size[0] * size[1], kernel[0] * kernel[1] * out_channels
    shrinks = height > size[0] or width > size[1]
    if shrinks or batch * positions * taps * channels < LEAST_PRODUCTS:
        return False
    return saving(level, size, out_channels, kernel) > 0


def saving(
    level: Sequence[int], size: Sequence[int], out_channels: int, kernel: Sequence[int]
) -> float:
    """Products a position that the level saves where it is convolved where it is."""
    _, channels, height, width = level
    taps = kernel[0] * kernel[1] * out_channels
    share = height * width / (size[0] * size[1])
    return taps * channels * (1 - share) + MAP * channels - TAP * taps


def exported_products(
    cells: Sequence[int | torch.SymInt],
    size: Sequence[int | torch.SymInt],
    kernel: Sequence[int] = (1, 1),
) -> float:
    """The products of a position, and of an output channel under a kernel, where an exported
    network interpolates (h, w) cells to (H, W) by matrices, the columns first. Of symbolic sizes
    those of the example count."""
    height, width, rows, _ = (_compat.hint(one) or 1 for one in (*cells, *size))
    return kernel[0] * height * (kernel[1] * width / rows + 1)


def _exported_pays(
    channels: int, cells: Sequence[int], size: Sequence[int], out_channels: int, kernel: list[int]
) -> bool:
    """`pays` for torch.onnx.export, where the interpolation is a runtime's. Asks no symbolic size,
    which would become a condition on what can be exported."""
    cells, size = ([_compat.hint(one) or 1 for one in each] for each in (cells, size))
    if any(cell > extent for cell, extent in zip(cells, size, strict=True)):
        return False
    share = cells[0] * cells[1] / (size[0] * size[1])
    one = min(exported_products(cells, size), EXPORTED_RESIZE)
    taps = one if kernel == [1, 1] else exported_products(cells, size, kernel)
    saved = kernel[0] * kernel[1] * out_channels * channels * (1 - share)
    return saved + EXPORTED_PRODUCT * one * channels > EXPORTED_PRODUCT * taps * out_channels


@dataclass
class Convolution:
    """One convolution over a concatenation: where, how, and its products each way."""

    path: str
    form: str
    products_before: int
    products_after: int
    bytes_before: int  # of the concatenation and its interpolated maps
    bytes_after: int  # of the taps


@dataclass
class Recorder:
    """Collects what promises met while a network runs on an example, and in which module."""

    convolutions: list[Convolution] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)  # of the modules that run, innermost last
    modules: set[str] = field(default_factory=set)  # where a promise was made, and where consumed

    def met(self, path: str) -> bool:
        """Whether a promise was made in the module at `path` and consumed anywhere, or consumed in
        it."""
        return any(path == "" or f"{at}.".startswith(f"{path}.") for at in self.modules)


_recorders: list[Recorder] = []


@contextmanager
def recording(network: nn.Module) -> Iterator[Recorder]:
    """Collects while the block runs; the network's modules say when they begin and end."""
    recorder = Recorder()
    paths = {module: path for path, module in network.named_modules()}

    def begin(module: nn.Module, args: Any) -> None:
        recorder.paths.append(paths.get(module, recorder.paths[-1] if recorder.paths else ""))

    def end(module: nn.Module, args: Any, output: Any) -> None:
        recorder.paths.pop()

    hooks = nn.modules.module
    handles = [
        hooks.register_module_forward_pre_hook(begin),
        hooks.register_module_forward_hook(end, always_call=True),
    ]
    _recorders.append(recorder)
    try:
        yield recorder
    finally:
        _recorders.remove(recorder)
        for handle in handles:
            handle.remove()


def here() -> str | None:
    """The path of the module that runs, while an example does."""
    if torch.compiler.is_compiling() or not _recorders:
        return None
    paths = _recorders[-1].paths
    return paths[-1] if paths else ""


def note(promises: Sequence[Any]) -> None:
    """Promises are consumed, here and now."""
    place = here()
    if place is not None:
        _recorders[-1].modules.update((place, *(one.place for one in promises)))


def record(pyramid: Any, weight: torch.Tensor, wait: Sequence[bool]) -> None:
    """Notes one convolution; `wait` says which parts stay small."""
    place = here()
    if place is None:
        return
    if any(wait):
        note([part for part, waits in zip(pyramid.parts, wait, strict=True) if waits])
    batch, _, height, width = pyramid.shape
    taps = weight.shape[0] * weight.shape[2] * weight.shape[3]
    positions = batch * height * width
    before = after = interpolated = small = 0
    for part, waits in zip(pyramid.parts, wait, strict=True):
        channels = part.shape[1]
        level = getattr(part, "level", part)
        cells = batch * level.shape[2] * level.shape[3]
        before += positions * channels * taps
        after += (cells if waits else positions) * channels * taps
        interpolated += positions * channels * (2 if level is not part else 1)
        small += cells * taps if waits else 0
    each = pyramid.inputs[0].element_size()
    _recorders[-1].convolutions.append(
        Convolution(
            place,
            "pyramid_conv" if any(wait) else "as it was",
            before,
            after,
            interpolated * each,
            small * each,
        )
    )
