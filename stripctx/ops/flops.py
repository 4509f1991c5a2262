"""FLOP formulas for torch.utils.flop_counter: two per multiply-add with weights or codewords, as
for torch's own operators. Means, gates and interpolation count zero there, as in torch.

Convolutions around these operators are torch's and counted by torch, including those that
`functional.pyramid_conv` runs on small maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

OPS = torch.ops.stripctx
UNCOUNTED = (
    *("strip_pool", "strip_add_relu", "sigmoid_gate", "row_gate", "channel_gate"),
    *("pyramid_pool", "pyramid_max_pool"),
    *("pyramid_concat", "pyramid_add_relu", "pyramid_taps_add"),
    *("upsample_cross_entropy", "upsample_binary_cross_entropy", "upsample_dice"),
)
UNDIFFERENTIABLE = ("upsample_argmax", "upsample_softmax_max")


def _strip_conv(rows: Any, cols: Any, weight: Any, *_: Any, **__: Any) -> int:
    """A 1x1 convolution over the map that the strips span."""
    batch, _, height, _ = rows
    return 2 * batch * height * cols[3] * weight[0] * weight[1]


def _products(times: int, first: int) -> Callable[..., int]:
    """A formula for `count` products of every position with every codeword; x is argument
    `first`."""

    def count(*shapes: Any, **_: Any) -> int:
        x, codewords = shapes[first], shapes[first + 1]
        return 2 * times * x[0] * math.prod(x[2:]) * codewords[0] * codewords[1]

    return count


def _nothing(*_: Any, **__: Any) -> int:
    return 0


def count_flops() -> None:
    """Registers the formulas. Called after all operators are defined, because defining another
    overload replaces the object that a formula is registered for."""
    register_flop_formula(OPS.strip_conv)(_strip_conv)
    register_flop_formula(OPS.encode)(_products(2, 0))  # distances, sums
    register_flop_formula(OPS.encode_backward)(_products(5, 1))
    both = [getattr(OPS, name + end) for name in UNCOUNTED for end in ("", "_backward")]
    register_flop_formula([*both, *(getattr(OPS, name) for name in UNDIFFERENTIABLE)])(_nothing)
