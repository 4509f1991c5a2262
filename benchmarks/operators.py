"""One call of every native operator, for the tests of the CUDA kernels' traffic and thread orders,
compute-sanitizer and the profiler on a GPU. To add an operator, add a line to `OPERATORS`, under
its name in benchmarks/floors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks.floors import (
    CODES,
    GATE_ROWS,
    HALF_LEVELS,
    KERNEL,
    MPM_BINS,
    PSP_BINS,
    Shape,
)
from benchmarks.floors.labels import small

FAMILIES = ("strip", "pyramid", "upsample", "height", "encoding", "labels")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Sample:
    """Creates random arguments of the shapes that operators take."""

    size: tuple[int, int, int, int]
    dtype: torch.dtype
    layout: str
    device: str = "cpu"

    @property
    def shape(self) -> Shape:
        return Shape(*self.size, element_size=self.dtype.itemsize)

    @property
    def channels_last(self) -> bool:
        return self.layout == "channels_last"

    def map(self) -> Tensor:
        return self.tensor(*self.size)

    def rows(self) -> Tensor:
        return self.tensor(*self.size[:3], 1)

    def cols(self) -> Tensor:
        return self.tensor(*self.size[:2], 1, self.size[3])

    def channels(self) -> Tensor:
        return self.tensor(self.size[1])

    def gate(self) -> Tensor:
        return self.tensor(*self.size[:2])

    def codes(self) -> tuple[Tensor, Tensor]:
        """Codewords, and scales that keep assignments away from 0 and 1."""
        return self.tensor(CODES, self.size[1]), self.tensor(CODES) / self.size[1]

    def encoded(self) -> Tensor:
        return self.tensor(self.size[0], CODES, self.size[1])

    def levels(self, bins: tuple[int, ...], channels: int) -> list[Tensor]:
        return [self.tensor(self.size[0], channels, b, b) for b in bins]

    def concat_levels(self) -> list[Tensor]:
        return self.levels(PSP_BINS, self.size[1] // 4)

    def concat_grad(self) -> tuple[Tensor, list[int]]:
        """A gradient with the levels' channels, and the levels' sizes."""
        quarter = self.size[1] // 4
        grad = self.tensor(self.size[0], quarter * len(PSP_BINS), *self.size[2:])
        return grad, [size for b in PSP_BINS for size in (quarter, b, b)]

    def maxima(self) -> list[Tensor]:
        """The positions of the maxima, the second half of pyramid_max_pool's results."""
        found: list[Tensor] = torch.ops.stripctx.pyramid_max_pool(self.map(), squares(PSP_BINS))
        return found[len(PSP_BINS) :]

    def taps(self) -> list[Tensor]:
        return self.levels(PSP_BINS, KERNEL**2 * self.size[1])

    def tap_geometry(self) -> tuple[Any, ...]:
        """Arguments: size, kernel, padding, dilation, modes, ratios."""
        geometry = (list(self.size[2:]), [KERNEL] * 2, [KERNEL // 2] * 2, [1, 1])
        return *geometry, *self.interpolation(PSP_BINS)

    def halves(self) -> tuple[int, int]:
        return -(-self.size[2] // 2), -(-self.size[3] // 2)

    def half_taps(self, kernel: int) -> list[Tensor]:
        return [self.tensor(self.size[0], kernel**2 * self.size[1], *self.halves())]

    def half_geometry(self, kernel: int) -> tuple[Any, ...]:
        """The same for one level of half the size, bilinear without aligned corners."""
        geometry = (list(self.size[2:]), [kernel] * 2, [kernel // 2] * 2, [1, 1])
        return *geometry, [0], [0.0, 0.0]

    def interpolation(self, bins: tuple[int, ...]) -> tuple[list[int], list[float]]:
        """Modes, bilinear with aligned corners, and ratios, derived from the sizes."""
        return [1] * len(bins), [0.0] * (2 * len(bins))

    def logits(self) -> Tensor:
        return self.tensor(*self.size[:2], GATE_ROWS)

    def small_logits(self) -> Tensor:
        """Logits with one class per channel, several times smaller than the map."""
        return self.tensor(*self.size[:2], *small(*self.size[1:]))

    def target(self) -> Tensor:
        size = (self.size[0], *self.size[2:])
        return torch.randint(0, self.size[1], size, device=self.device)

    def pixels(self, *more: int) -> Tensor:
        """Random numbers in float32 for any dtype of the logits: (N, H, W) or the given size."""
        size = more or (self.size[0], *self.size[2:])
        return torch.rand(size, device=self.device)

    def tensor(self, *size: int) -> Tensor:
        value = torch.randn(size, dtype=torch.float32, device=self.device).to(self.dtype)
        return value.contiguous(memory_format=LAYOUTS[self.layout]) if len(size) == 4 else value


def squares(bins: tuple[int, ...]) -> list[int]:
    return [size for b in bins for size in (b, b)]


OPERATORS: dict[str, Callable[[Sample], tuple[Any, ...]]] = {
    "pyramid_pool": lambda make: (make.map(), squares(PSP_BINS)),
    "pyramid_pool_backward": lambda make: (
        make.levels(PSP_BINS, make.size[1]),
        *make.size[2:],
        make.channels_last,
    ),
    "pyramid_max_pool": lambda make: (make.map(), squares(PSP_BINS)),
    "pyramid_max_pool_backward": lambda make: (
        make.levels(PSP_BINS, make.size[1]),
        make.maxima(),
        *make.size[2:],
        make.channels_last,
    ),
    "pyramid_concat": lambda make: (
        make.map(),
        make.concat_levels(),
        *make.interpolation(PSP_BINS),
        0,
    ),
    "pyramid_concat_backward": lambda make: (
        *make.concat_grad(),
        *make.interpolation(PSP_BINS),
        make.channels_last,
    ),
    "pyramid_add_relu": lambda make: (
        make.map(),
        make.levels(MPM_BINS, make.size[1]),
        *make.interpolation(MPM_BINS),
    ),
    "pyramid_add_relu_backward": lambda make: (
        make.map(),
        make.map(),
        squares(MPM_BINS),
        *make.interpolation(MPM_BINS),
    ),
    "pyramid_taps_add": lambda make: (make.map(), make.taps(), *make.tap_geometry()),
    "pyramid_taps_add_backward": lambda make: (
        make.map(),
        squares(PSP_BINS),
        *make.tap_geometry(),
        make.channels_last,
    ),
    "row_gate": lambda make: (make.map(), make.logits()),
    "row_gate_backward": lambda make: (make.map(), make.map(), make.logits()),
    "strip_pool": lambda make: (make.map(),),
    "strip_pool_backward": lambda make: (make.rows(), make.cols(), make.channels_last),
    "strip_add_relu": lambda make: (make.rows(), make.cols()),
    "strip_add_relu_backward": lambda make: (make.map(), make.rows(), make.cols()),
    "sigmoid_gate": lambda make: (make.map(), make.map(), make.channels()),
    "encode": lambda make: (make.map(), *make.codes(), False),
    "encode_backward": lambda make: (make.encoded(), make.map(), *make.codes(), False),
    "channel_gate": lambda make: (make.map(), make.gate()),
    "channel_gate_backward": lambda make: (make.map(), make.map(), make.gate()),
    "sigmoid_gate_backward": lambda make: (make.map(), make.map(), make.map(), make.channels()),
    "upsample_argmax": lambda make: (make.small_logits(), make.size[2:], False, 4),
    "upsample_softmax_max": lambda make: (make.small_logits(), make.size[2:], False, 8),
    "upsample_cross_entropy": lambda make: (
        make.small_logits(),
        make.target(),
        None,
        False,
        255,
        0.0,
        False,
    ),
    "upsample_cross_entropy_backward": lambda make: (
        make.pixels(),
        make.small_logits(),
        make.target(),
        None,
        make.pixels() + 5,
        False,
        255,
        0.0,
    ),
    "upsample_binary_cross_entropy": lambda make: (
        make.small_logits(),
        make.map(),
        None,
        None,
        False,
        False,
    ),
    "upsample_binary_cross_entropy_backward": lambda make: (
        make.pixels(*make.size),
        make.small_logits(),
        make.map(),
        None,
        None,
        False,
    ),
    "upsample_dice": lambda make: (make.small_logits(), make.target(), False, 255),
    "upsample_dice_backward": lambda make: (
        make.pixels(make.size[0], 3, make.size[1]),
        make.small_logits(),
        make.target(),
        make.pixels() + 5,
        False,
        255,
    ),
}

# tests/test_pyramid.py counts traffic and thread orders of these for more kinds of bins.
POOLING = ("pyramid_pool", "pyramid_pool_backward", "pyramid_max_pool", "pyramid_max_pool_backward")
COUNTED = tuple(name for name in OPERATORS if name not in POOLING)


def half_level(kernel: int) -> Callable[[Sample], tuple[Any, ...]]:
    return lambda make: (make.map(), make.half_taps(kernel), *make.half_geometry(kernel))


def half_level_backward(kernel: int) -> Callable[[Sample], tuple[Any, ...]]:
    return lambda make: (
        make.map(),
        list(make.halves()),
        *make.half_geometry(kernel),
        make.channels_last,
    )


# Other arguments of the same operators, by "operator, what is particular".
VARIANTS: dict[str, Callable[[Sample], tuple[Any, ...]]] = {}
for _what, _kernel in HALF_LEVELS.items():
    VARIANTS[f"pyramid_taps_add, {_what}"] = half_level(_kernel)
    VARIANTS[f"pyramid_taps_add_backward, {_what}"] = half_level_backward(_kernel)


def call(name: str, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Calls the operator, of OPERATORS or VARIANTS; always returns a tuple."""
    return listed(getattr(torch.ops.stripctx, name.partition(",")[0])(*arguments))


def reference(name: str) -> Callable[..., Any]:
    """The operator's implementation in plain PyTorch."""
    found = (import_module(f"stripctx.reference.{family}") for family in FAMILIES)
    kernel: Callable[..., Any] = next(getattr(m, name) for m in found if hasattr(m, name))
    return kernel


def listed(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)
