"""Arguments of every function of `stripctx.functional` and of every layer, for the benchmarks and
the tests of peers.

Tensors are normal noise, the same on every call. Other arguments are those of the papers: PSPNet's
bins and branches, SPNet's short-range pyramid, HANet's rows, EncNet's codewords.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import stripctx
from benchmarks.floors import CODES, GATE_ROWS, KERNEL, MPM_BINS, PSP_BINS
from benchmarks.floors.labels import small
from stripctx import functional

Size = tuple[int, int, int, int]  # (N, C, H, W)
CLASSES = 150  # ADE20K's, for EncNet's logits


def inputs(
    operator: str,
    size: Size,
    dtype: torch.dtype,
    layout: torch.memory_format,
    *,
    device: str = "cpu",
    requires_grad: bool = True,
) -> tuple[Callable[..., Any], list[Any]]:
    """Returns the function with its keywords bound, or the layer, and its arguments; tensors may be
    in lists."""
    batch, channels, height, width = size
    branch = max(2, channels // 4)  # with one channel, memory formats are indistinguishable
    generator = torch.Generator(device).manual_seed(0)

    def tensor(*sizes: int, dtype: torch.dtype = dtype, over: float = 1.0) -> Tensor:
        value = (torch.randn(sizes, generator=generator, device=device) / over).to(dtype)
        if value.dim() == 4:
            value = value.contiguous(memory_format=layout)
        return value.requires_grad_(requires_grad)

    def levels(bins: tuple[int, ...], channels: int) -> list[Tensor]:
        return [tensor(batch, channels, b, b) for b in bins]

    if operator.startswith("upsample_"):
        logits = tensor(batch, channels, *small(channels, height, width))
        if "max" in operator:
            function = partial(getattr(functional, operator), align_corners=False)
            return function, [logits.detach(), (height, width)]
        if "binary" in operator:
            target = torch.rand(size, generator=generator, device=device).to(dtype)
        else:
            shape = (batch, height, width)
            target = torch.randint(channels, shape, generator=generator, device=device)
        return partial(getattr(functional, operator), align_corners=False), [logits, target]
    x = tensor(*size)
    if operator in LAYERS:
        layer: Any = make_layer(operator, channels).to(device, dtype)
        layer = layer.to(memory_format=layout)
        return layer, [x, tensor(*size)] if operator == "HeightAttention" else [x]
    if operator in ("strip_add_relu", "strip_gate"):
        rows, cols = tensor(batch, channels, height, 1), tensor(batch, channels, 1, width)
        if operator == "strip_add_relu":
            return functional.strip_add_relu, [rows, cols]
        weight = tensor(channels, channels, 1, 1, over=channels**0.5)
        return functional.strip_gate, [x, rows, cols, weight, tensor(channels)]
    if operator == "encode":  # float32 parameters keep the sums exact
        wide = torch.promote_types(dtype, torch.float32)
        codewords = tensor(CODES, channels, dtype=wide)
        return functional.encode, [x, codewords, tensor(CODES, dtype=wide, over=channels)]
    if operator == "pyramid_conv":
        inner = channels + len(PSP_BINS) * branch
        weight = tensor(branch, inner, KERNEL, KERNEL, over=inner**0.5 * KERNEL)
        convolution = partial(functional.pyramid_conv, padding=KERNEL // 2, align_corners=True)
        return convolution, [x, levels(PSP_BINS, branch), weight, tensor(branch)]
    aligned: dict[str, Callable[[], list[Tensor]]] = {
        "pyramid_concat": lambda: levels(PSP_BINS, branch),
        "pyramid_add": lambda: [tensor(batch, channels, -(-height // 2), -(-width // 2))],
        "pyramid_add_relu": lambda: levels(MPM_BINS, channels),
    }
    if operator in aligned:
        function = partial(getattr(functional, operator), align_corners=True)
        return function, [x, aligned[operator]()]
    others: dict[str, Callable[[], list[Any]]] = {
        "strip_pool": list,
        "sigmoid_gate": lambda: [tensor(*size), tensor(channels)],
        "channel_gate": lambda: [tensor(batch, channels)],
        "pyramid_pool": lambda: [PSP_BINS],
        "row_pool": lambda: [GATE_ROWS],
        "row_gate": lambda: [tensor(batch, channels, GATE_ROWS)],
    }
    return getattr(functional, operator), [x, *others[operator]()]


# Layers for maps of C channels. No norm is applied to 1x1 maps, so a batch of one can be trained.
LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "StripPooling": stripctx.StripPooling,
    "MixedPooling": stripctx.MixedPooling,
    "PyramidPooling": partial(stripctx.PyramidPooling, global_norm=False),
    "PyramidPoolingConv": lambda channels: stripctx.PyramidPoolingConv(
        channels, channels // 4, global_norm=False
    ),
    "HeightAttention": lambda channels: stripctx.HeightAttention(channels, channels),
    "EncodingLayer": lambda channels: stripctx.EncodingLayer(channels, CODES),
    "ContextEncoding": lambda channels: stripctx.ContextEncoding(channels, CLASSES, CODES),
}


def make_layer(name: str, channels: int) -> nn.Module:
    """A layer with the same parameters on every call. Scales keep assignments away from 0 and 1, as
    training does: rounding a distance then does not change a position's codeword."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = LAYERS[name](channels)
    for module in layer.modules():
        if isinstance(module, stripctx.EncodingLayer):
            with torch.no_grad():
                assert module.scale is not None
                module.scale.div_(channels)
    return layer
