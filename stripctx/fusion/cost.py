"""The cost model: from shapes, whether to convolve a level before or after interpolation.

A level of h x w cells under a k x k kernel, convolved before interpolation, costs O k^2 C
multiply-adds per cell, then per position of the H x W map the interpolation and sum of O k^2 taps.
Convolved after, it costs O k^2 C multiply-adds per position and the writing of C interpolated
values. Costs are per position of the map, in multiply-adds of the library's convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stripctx import _compat

# In multiply-adds: one tap of one output (reading, weighting and adding two or four cells), one
# value of an interpolated map (writing, copying and reading it), and the overhead of a level.
# `python -m benchmarks.decoders --fit` finds 34 and 340 forward, 32 and 320 with the backward pass,
# for float32 on a CPU with AVX-512. A map that stays in the caches costs less; these values err on
# the side of leaving a network as it was. They have not been measured on CUDA.
TAP = 30.0
MAP = 180.0
CALL = 2.0**25  # the calls that each level adds: 0.2 to 0.4 ms with the backward pass

# In an exported network the runtime interpolates, by Resize or by a matrix product along each axis:
# the cost of one resized value in multiply-adds of those matrix products, and the cost of one of
# these in multiply-adds of a convolution. Measured with ONNX Runtime 1.32 on a CPU.
EXPORTED_RESIZE = 64.0
EXPORTED_PRODUCT = 2.0


def pays(
    level: Sequence[int], size: Sequence[int], out_channels: int, kernel: Sequence[int]
) -> bool:
    """Whether to convolve the level (N, C, h, w) before it is interpolated to `size`."""
    batch, channels, height, width = level
    if torch.onnx.is_in_onnx_export():
        return _exported_pays(channels, (height, width), size, out_channels, list(kernel))
    if height > size[0] or width > size[1]:
        return False
    return batch * size[0] * size[1] * saving(level, size, out_channels, kernel) > CALL


def saving(
    level: Sequence[int], size: Sequence[int], out_channels: int, kernel: Sequence[int]
) -> float:
    """Multiply-adds per position saved by convolving the level before interpolation."""
    _, channels, height, width = level
    taps = kernel[0] * kernel[1] * out_channels
    share = height * width / (size[0] * size[1])
    return taps * channels * (1 - share) + MAP * channels - TAP * taps


def exported_products(
    cells: Sequence[int | torch.SymInt],
    size: Sequence[int | torch.SymInt],
    kernel: Sequence[int] = (1, 1),
) -> float:
    """Multiply-adds per position and output channel of interpolating (h, w) cells to (H, W) by
    matrix products, columns first, for all taps of a kernel. Symbolic sizes count with the values
    of the example."""
    height, width, rows, _ = (_compat.hint(one) or 1 for one in (*cells, *size))
    return kernel[0] * height * (kernel[1] * width / rows + 1)


def _exported_pays(
    channels: int, cells: Sequence[int], size: Sequence[int], out_channels: int, kernel: list[int]
) -> bool:
    """`pays` for torch.onnx.export. Uses hints of symbolic sizes: comparing the sizes themselves
    would add a guard to the exported program."""
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
    """A convolution over a concatenation: its module, its form, and its cost before and after."""

    path: str
    form: str
    products_before: int
    products_after: int
    bytes_before: int  # the concatenation and the interpolated maps
    bytes_after: int  # the taps


@dataclass
class Recorder:
    """Records how lazy tensors were used while a network ran on an example, and in which module."""

    convolutions: list[Convolution] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)  # of the running modules, innermost last
    modules: set[str] = field(default_factory=set)  # modules that created or used a lazy tensor

    def met(self, path: str) -> bool:
        """Whether the module at `path` or a submodule created a lazy tensor that was used as such,
        or used one."""
        return any(path == "" or f"{at}.".startswith(f"{path}.") for at in self.modules)


_recorders: list[Recorder] = []


@contextmanager
def recording(network: nn.Module) -> Iterator[Recorder]:
    """Records while the block runs. Global module hooks track which module is running."""
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
    """The path of the running module while recording, else None."""
    if torch.compiler.is_compiling() or not _recorders:
        return None
    paths = _recorders[-1].paths
    return paths[-1] if paths else ""


def note(used: Sequence[Any]) -> None:
    """Records that the running module used these lazy tensors."""
    place = here()
    if place is not None:
        _recorders[-1].modules.update((place, *(one.place for one in used)))


def record(pyramid: Any, weight: torch.Tensor, wait: Sequence[bool]) -> None:
    """Records a convolution; `wait` says which parts are convolved before interpolation."""
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
