"""The baselines: every function of `stripctx.functional` in well-written plain PyTorch, eager and
under torch.compile.

Well-written means: the fastest PyTorch operators for the given layout, broadcasting instead of
expanding, in-place operations where autograd permits them, biases added by the convolution, and
channels_last kept from input to output.

    with peers.installed():
        network(x)      # every stripctx layer inside runs on plain PyTorch
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripctx import functional
from stripctx.layout import is_channels_last, memory_format


def strip_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """`mean` is faster, except for channels_last on a CPU, where only Inductor vectorises it."""
    slow_mean = is_channels_last(x) and x.device.type == "cpu"
    if slow_mean and not torch.compiler.is_compiling():
        pooled = F.adaptive_avg_pool2d(x, (None, 1)), F.adaptive_avg_pool2d(x, (1, None))
    else:
        pooled = x.mean(3, keepdim=True), x.mean(2, keepdim=True)
    rows, cols = (strip.contiguous(memory_format=memory_format(x)) for strip in pooled)
    return rows, cols


def strip_add_relu(rows: Tensor, cols: Tensor) -> Tensor:
    return (rows + cols).relu_()


def sigmoid_gate(x: Tensor, logits: Tensor, bias: Tensor | None = None) -> Tensor:
    if bias is None:
        return x * logits.sigmoid()
    return x * (logits + bias[:, None, None]).sigmoid_()


def strip_gate(
    x: Tensor, rows: Tensor, cols: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    return x * F.conv2d((rows + cols).relu_(), weight, bias).sigmoid_()


def encode(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """Uses matrix products only, without materialising residuals."""
    positions = x.flatten(2).mT.to(codewords.dtype)
    norms = positions.square().sum(-1, keepdim=True) + codewords.square().sum(-1)
    distances = norms - 2 * (positions @ codewords.mT)
    assignments = (distances * scale).softmax(-1)
    masses = assignments.sum(1)[..., None]
    return torch.baddbmm(masses * codewords, assignments.mT, positions, beta=-1)


def channel_gate(x: Tensor, gate: Tensor) -> Tensor:
    return (x + x * gate[..., None, None]).relu_()


def pyramid_pool(
    x: Tensor, bins: Sequence[int | tuple[int, int]], mode: str = "mean"
) -> list[Tensor]:
    """Computes means of coarse bins from those of the finest if all divide the map evenly, so that
    x is read once. Maxima are excluded: the gradient goes to the first maximum of the whole
    window."""
    sizes = [b if isinstance(b, tuple) else (b, b) for b in bins]
    if mode == "max":
        return [F.adaptive_max_pool2d(x, size) for size in sizes]
    finest = max(sizes, key=math.prod)
    fine = F.adaptive_avg_pool2d(x, finest)
    return [
        fine if size == finest else F.adaptive_avg_pool2d(fine if _nest(size, fine, x) else x, size)
        for size in sizes
    ]


def _nest(size: tuple[int, int], fine: Tensor, x: Tensor) -> bool:
    """Whether every bin consists of whole fine bins of equal size."""
    axes = zip(size, fine.shape[2:], x.shape[2:], strict=True)
    return all(finer % bins == 0 and extent % finer == 0 for bins, finer, extent in axes)


def row_pool(x: Tensor, rows: int, mode: str = "mean") -> Tensor:
    pool = F.adaptive_max_pool2d if mode == "max" else F.adaptive_avg_pool2d
    return pool(x, (rows, 1)).squeeze(3)


def _enlarge(level: Tensor, x: Tensor, align_corners: bool) -> Tensor:
    """Interpolates a level to a map that broadcasts to that of x: axes of one cell stay."""
    axes = zip(level.shape[2:], x.shape[2:], strict=True)
    size = [1 if cells == 1 else extent for cells, extent in axes]
    if size == list(level.shape[2:]):
        return level
    return F.interpolate(level, size, mode="bilinear", align_corners=align_corners)


def pyramid_concat(
    x: Tensor, levels: Sequence[Tensor], *, align_corners: bool, x_index: int = 0
) -> Tensor:
    """Converts every part to the format of x: torch.cat returns contiguous if one differs."""
    maps = [
        _enlarge(level, x, align_corners)
        .expand(-1, -1, *x.shape[2:])
        .contiguous(memory_format=memory_format(x))
        for level in levels
    ]
    maps.insert(x_index if x_index >= 0 else len(maps), x)
    return torch.cat(maps, 1)


def pyramid_add(x: Tensor, levels: Sequence[Tensor], *, align_corners: bool) -> Tensor:
    first, *others = (_enlarge(level, x, align_corners) for level in levels)
    out = x + first
    for other in others:
        out = out.add_(other)
    return out


def pyramid_add_relu(x: Tensor, levels: Sequence[Tensor], *, align_corners: bool) -> Tensor:
    return pyramid_add(x, levels, align_corners=align_corners).relu_()


def pyramid_conv(
    x: Tensor,
    levels: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    align_corners: bool,
    x_index: int = 0,
) -> Tensor:
    concat = pyramid_concat(x, levels, align_corners=align_corners, x_index=x_index)
    return F.conv2d(concat, weight, bias, padding=padding, dilation=dilation)


def row_gate(x: Tensor, logits: Tensor) -> Tensor:
    return x * F.interpolate(logits.sigmoid(), x.size(2), mode="linear")[..., None]


def wide(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Interpolates logits, in float32 for half types, as losses do under autocast."""
    logits = logits if logits.dtype is torch.float64 else logits.float()
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=align_corners)


def upsample_argmax(
    logits: Tensor,
    size: Sequence[int],
    *,
    align_corners: bool,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    return wide(logits, size, align_corners).argmax(1).to(dtype)


def upsample_softmax_max(
    logits: Tensor,
    size: Sequence[int],
    *,
    align_corners: bool,
    dtype: torch.dtype = torch.int64,
) -> tuple[Tensor, Tensor]:
    chance, labels = wide(logits, size, align_corners).softmax(1).max(1)
    return labels.to(dtype), chance


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    align_corners: bool,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    return F.cross_entropy(
        wide(logits, target.shape[1:], align_corners),
        target.long(),
        weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


def upsample_binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pos_weight: Tensor | None = None,
    align_corners: bool,
    reduction: str = "mean",
) -> Tensor:
    logits = wide(logits, target.shape[2:], align_corners)
    return F.binary_cross_entropy_with_logits(
        logits, target.to(logits.dtype), weight, pos_weight=pos_weight, reduction=reduction
    )


def upsample_dice(
    logits: Tensor, target: Tensor, *, align_corners: bool, ignore_index: int = 255
) -> tuple[Tensor, Tensor, Tensor]:
    """Scatters the probabilities of the labels, without a one-hot map."""
    chance = wide(logits, target.shape[1:], align_corners).softmax(1)
    batch, classes = chance.shape[:2]
    known = (target >= 0) & (target < classes) & (target != ignore_index)
    labels = torch.where(known, target, 0).flatten(1)
    picked = chance.flatten(2).gather(1, labels[:, None])[:, 0] * known.flatten(1)
    overlap = chance.new_zeros(batch, classes).scatter_add(1, labels, picked)
    count = chance.new_zeros(batch, classes).scatter_add(1, labels, known.flatten(1).to(chance))
    return overlap, (chance * known[:, None]).sum((2, 3)), count


PEERS: dict[str, Callable[..., Any]] = {
    "encode": encode,
    "channel_gate": channel_gate,
    "pyramid_pool": pyramid_pool,
    "pyramid_concat": pyramid_concat,
    "pyramid_add": pyramid_add,
    "pyramid_add_relu": pyramid_add_relu,
    "pyramid_conv": pyramid_conv,
    "row_pool": row_pool,
    "row_gate": row_gate,
    "strip_pool": strip_pool,
    "strip_add_relu": strip_add_relu,
    "sigmoid_gate": sigmoid_gate,
    "strip_gate": strip_gate,
    "upsample_argmax": upsample_argmax,
    "upsample_binary_cross_entropy": upsample_binary_cross_entropy,
    "upsample_cross_entropy": upsample_cross_entropy,
    "upsample_dice": upsample_dice,
    "upsample_softmax_max": upsample_softmax_max,
}
# without a backward pass
LABEL_MAPS = ("upsample_argmax", "upsample_softmax_max")


@contextmanager
def installed() -> Iterator[None]:
    """Within this context, the peers replace the functions of `stripctx.functional`."""
    originals = {name: getattr(functional, name) for name in PEERS}
    try:
        for name, peer in PEERS.items():
            setattr(functional, name, peer)
        yield
    finally:
        for name, original in originals.items():
            setattr(functional, name, original)


def of(candidate: Callable[..., Any]) -> Callable[..., Any]:
    """The eager peer of a function of `stripctx.functional`, which may be a partial with keywords,
    or of a module built from them."""
    if isinstance(candidate, partial):
        return partial(of(candidate.func), *candidate.args, **candidate.keywords)
    if not isinstance(candidate, nn.Module):
        return PEERS[candidate.__name__]

    def peer(*arguments: Any) -> Any:
        with installed():
            return candidate(*arguments)

    return peer


def compiled(candidate: Callable[..., Any]) -> Callable[..., Any]:
    """The peer under torch.compile, for fixed shapes. The first call compiles and may raise, for
    instance if there is no C++ compiler."""
    if isinstance(candidate, partial):
        return partial(compiled(candidate.func), *candidate.args, **candidate.keywords)
    if not isinstance(candidate, nn.Module):
        return torch.compile(PEERS[candidate.__name__], fullgraph=True, dynamic=False)
    module = torch.compile(candidate, fullgraph=True, dynamic=False)

    def peer(*arguments: Any) -> Any:
        with installed():
            return module(*arguments)

    return peer
