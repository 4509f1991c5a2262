"""Arguments of every function of `stripctx.functional`, for the benchmarks and the tests of peers.

Normal noise, the same on every call. What an operator takes beside its map is what the paper has:
PSPNet's bins and branches, SPNet's short pyramid, HANet's rows, EncNet's codewords.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.floors import CODES
from stripctx import functional

BINS = (1, 2, 3, 6)  # PSPNet's
SHORT = (20, 12)  # SPNet's mixed pooling
ROWS = 16  # HANet's
TAPS = 3  # the kernel's side in the convolution over a pyramid

Size = tuple[int, int, int, int]  # (N, C, H, W)


def inputs(
    operator: str,
    size: Size,
    dtype: torch.dtype,
    layout: torch.memory_format,
    *,
    device: str = "cpu",
    requires_grad: bool = True,
) -> tuple[Callable[..., Any], list[Any]]:
    """The function with its keywords bound, and its arguments; tensors may be in lists."""
    batch, channels, height, width = size
    branch = max(2, channels // 4)  # one channel has no format
    generator = torch.Generator().manual_seed(0)

    def tensor(*sizes: int, dtype: torch.dtype = dtype, over: float = 1.0) -> Tensor:
        value = (torch.randn(sizes, generator=generator) / over).to(device, dtype)
        if value.dim() == 4:
            value = value.contiguous(memory_format=layout)
        return value.requires_grad_(requires_grad)

    def levels(bins: tuple[int, ...], channels: int) -> list[Tensor]:
        return [tensor(batch, channels, b, b) for b in bins]

    x = tensor(*size)
    if operator in ("strip_add_relu", "strip_gate"):
        rows, cols = tensor(batch, channels, height, 1), tensor(batch, channels, 1, width)
        if operator == "strip_add_relu":
            return functional.strip_add_relu, [rows, cols]
        weight = tensor(channels, channels, 1, 1, over=channels**0.5)
        return functional.strip_gate, [x, rows, cols, weight, tensor(channels)]
    if operator == "encode":  # parameters in float32 keep every digit of the sums
        wide = torch.promote_types(dtype, torch.float32)
        codewords = tensor(CODES, channels, dtype=wide)
        return functional.encode, [x, codewords, tensor(CODES, dtype=wide, over=channels)]
    if operator == "pyramid_conv":
        inner = channels + len(BINS) * branch
        weight = tensor(branch, inner, TAPS, TAPS, over=inner**0.5 * TAPS)
        convolution = partial(functional.pyramid_conv, padding=TAPS // 2, align_corners=True)
        return convolution, [x, levels(BINS, branch), weight, tensor(branch)]
    if operator == "pyramid_concat":
        return partial(functional.pyramid_concat, align_corners=True), [x, levels(BINS, branch)]
    if operator == "pyramid_add_relu":
        return partial(functional.pyramid_add_relu, align_corners=True), [
            x,
            levels(SHORT, channels),
        ]
    others: dict[str, Callable[[], list[Any]]] = {
        "strip_pool": list,
        "sigmoid_gate": lambda: [tensor(*size), tensor(channels)],
        "channel_gate": lambda: [tensor(batch, channels)],
        "pyramid_pool": lambda: [BINS],
        "row_pool": lambda: [ROWS],
        "row_gate": lambda: [tensor(batch, channels, ROWS)],
    }
    return getattr(functional, operator), [x, *others[operator]()]


def tensors(arguments: Sequence[Any]) -> list[Tensor]:
    """The tensors among arguments, those in lists too."""
    flat = []
    for value in arguments:
        flat += value if isinstance(value, list) else [value]
    return [value for value in flat if isinstance(value, Tensor)]
