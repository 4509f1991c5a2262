"""The testing protocols of the four systems, for whole images.

| protocol          | long side       | windows                           | what is averaged    |
| ----------------- | --------------- | --------------------------------- | ------------------- |
| `WholeImage`      | scale * its own | one                               | softmax             |
| `SemsegSliding`   | scale * base    | step ceil(2/3 crop), last shifted | softmax             |
| `HanetSliding`    | scale * its own | overlap 1/3, last shifted         | logits              |
| `EncodingSliding` | scale * base    | step int(2/3 crop), last padded   | exp(logits+flipped) |

Each is a small frozen dataclass that defines the windows and how logits become scores;
`inference.infer` runs any of them. Scores are averaged where windows overlap, resized to the image,
and averaged over the scales; a pixel's class is the one with the highest score. Images are
normalised, so 0 is the mean colour. Upstream resizes 8-bit images, which rounds every pixel; here
pixels are not rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

Area = tuple[slice, slice, slice]  # channels, rows, columns

BLACK = (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225)  # normalised like ImageNet images


@dataclass(frozen=True)
class Windows:
    """The windows that a network sees: boxes of one size. Pixels outside the image are padding."""

    height: int
    width: int
    corners: tuple[tuple[int, int], ...]  # (top, left); may be negative

    def shared(self, corner: tuple[int, int], height: int, width: int) -> tuple[Area, Area]:
        """The intersection of a window with an image of this size: in the image, in the window."""
        top, left = corner
        rows = slice(max(top, 0), min(top + self.height, height))
        cols = slice(max(left, 0), min(left + self.width, width))
        own_rows = slice(rows.start - top, rows.stop - top)
        own_cols = slice(cols.start - left, cols.stop - left)
        return (slice(None), rows, cols), (slice(None), own_rows, own_cols)


@dataclass(frozen=True)
class Protocol:
    """The base class of the protocols.

    Attributes:
        scales: the scales of the image.
        flip: whether mirrored images are evaluated too.
        padding: the normalised colour of padding.
        align_corners: of every resize, of the image and of the scores.
        antialias: whether downscaling the image uses antialiasing.
        mirrors: "windows" mirrors each window; "image" mirrors the image, whose windows then differ
            if the last ones are shifted back.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    padding: tuple[float, float, float] = (0.0, 0.0, 0.0)
    align_corners: ClassVar[bool] = False
    antialias: ClassVar[bool] = False
    mirrors: ClassVar[str] = "windows"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"{type(self).__name__}: scales must be positive, got {self.scales}")
        for name in ("crop", "base_size"):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be positive, got {value}")

    def size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        """The size of the image at a scale."""
        return max(1, int(height * scale)), max(1, int(width * scale))

    def windows(self, height: int, width: int, scale: float) -> Windows:
        """The windows for an image of this size."""
        return Windows(height, width, ((0, 0),))

    def score(self, logits: Tensor, flipped: Tensor | None) -> Tensor:
        """Scores from logits (N, K, h, w) of windows, and of their mirror images, flipped back."""
        chance = logits.softmax(1)
        return chance if flipped is None else (chance + flipped.softmax(1)) / 2


@dataclass(frozen=True)
class WholeImage(Protocol):
    """The whole image at once: the usual test of networks that accept any size."""


@dataclass(frozen=True)
class SemsegSliding(Protocol):
    """The test of semseg and SPNet.

    The image is resized so that its long side is round(scale * base_size), padded on all sides to
    at least the crop size, and covered by square windows at steps of ceil(2/3 crop), the last
    window of a row or column shifted back to end at the image's edge.

    Attributes:
        base_size: by default (None) the image's own long side. 512 for ADE20K and VOC, 2048 for
            Cityscapes, with scales 0.5, 0.75, 1, 1.25, 1.5 and 1.75 in the multi-scale test.
        crop: 473 and 713 in semseg, 480 and 768 in SPNet.
    """

    base_size: int | None = None
    crop: int = 473

    def size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        long = max(height, width)
        longer = max(1, round(scale * (self.base_size or long)))
        shorter = max(1, round(longer / long * min(height, width)))
        return (longer, shorter) if height > width else (shorter, longer)

    def windows(self, height: int, width: int, scale: float) -> Windows:
        step = math.ceil(self.crop * 2 / 3)
        tops, lefts = (
            [
                start - max(self.crop - side, 0) // 2
                for start in _shifted_back(side, self.crop, step)
            ]
            for side in (height, width)
        )
        return Windows(self.crop, self.crop, _grid(tops, lefts))


@dataclass(frozen=True)
class HanetSliding(Protocol):
    """HANet's evaluation: raw logits averaged over windows, flips and scales.

    The side of a window is crop * max(1, scale), or the image's if that is smaller; windows overlap
    by at least a third. The network receives the height of every row in the whole image.

    Attributes:
        crop: 1024 for Cityscapes, with scales 0.5, 1 and 2.
        overlap: of neighbouring windows, as a fraction of their side.
    """

    crop: int = 1024
    overlap: float = 1 / 3
    antialias: ClassVar[bool] = True  # as PIL, which upstream uses
    mirrors: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.overlap < 1:
            raise ValueError(f"HanetSliding: overlap must be in [0, 1), got {self.overlap}")

    def windows(self, height: int, width: int, scale: float) -> Windows:
        crop = int(self.crop * max(1.0, scale))
        step = math.ceil(crop * (1 - self.overlap))
        tops, lefts = (_shifted_back(side, crop, step) for side in (height, width))
        return Windows(min(crop, height), min(crop, width), _grid(tops, lefts))

    def score(self, logits: Tensor, flipped: Tensor | None) -> Tensor:
        return logits


@dataclass(frozen=True)
class EncodingSliding(Protocol):
    """PyTorch-Encoding's MultiEvalModule: a window's score is exp(logits + flipped logits).

    Scores are not normalised over the classes, so a window or scale has more weight where it is
    more confident. Upstream computes the exponential in float32, which overflows above 88; here it
    is float64, and if the largest sum of a pixel exceeds 600, all its sums are lowered such that it
    is 600. Otherwise both agree. Upstream sums over the scales, here they are averaged: the argmax
    is the same.

    Attributes:
        base_size: by default (None) the image's own long side. 520 upstream, 2048 for Cityscapes,
            with
            scales 0.5, 0.75, 1, 1.25, 1.5 and 1.75 (Cityscapes 0.75 to 2.25 in steps of a quarter).
        crop: 480 upstream.
    """

    base_size: int | None = None
    crop: int = 480
    padding: tuple[float, float, float] = BLACK
    align_corners: ClassVar[bool] = True

    def size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        long = max(height, width)
        longer = math.ceil((self.base_size or long) * scale)
        shorter = max(1, int(min(height, width) * longer / long + 0.5))
        return (longer, shorter) if height > width else (shorter, longer)

    def windows(self, height: int, width: int, scale: float) -> Windows:
        step = max(1, int(self.crop * 2 / 3))
        tops, lefts = (
            [step * index for index in range(_count(side, self.crop, step))]
            for side in (height, width)
        )
        return Windows(self.crop, self.crop, _grid(tops, lefts))

    def score(self, logits: Tensor, flipped: Tensor | None) -> Tensor:
        total = logits.double() if flipped is None else logits.double() + flipped
        return (total - (total.amax(1, keepdim=True) - 600).clamp_min(0)).exp()


PROTOCOLS: dict[str, type[Protocol]] = {
    "whole": WholeImage,
    "semseg": SemsegSliding,
    "hanet": HanetSliding,
    "encoding": EncodingSliding,
}


def create(name: str, **options: Any) -> Protocol:
    """Creates the protocol called `name`; options that are None keep their defaults.

    Example:
        >>> create("semseg", crop=480, scales=None).crop
        480
    """
    if name not in PROTOCOLS:
        raise ValueError(f"create: protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    known = {each.name for each in fields(PROTOCOLS[name])}
    given = {key: value for key, value in options.items() if value is not None}
    if not given.keys() <= known:
        unknown = ", ".join(sorted(given.keys() - known))
        raise ValueError(
            f"create: the protocol {name!r} takes {', '.join(sorted(known))}, got {unknown}"
        )
    return PROTOCOLS[name](**given)


def _count(side: int, crop: int, step: int) -> int:
    """The number of windows needed to cover a side."""
    return math.ceil(max(side - crop, 0) / step) + 1


def _shifted_back(side: int, crop: int, step: int) -> list[int]:
    """The starts of the windows along a side, the last one shifted back to end at the edge."""
    last = max(side - crop, 0)
    return [min(step * index, last) for index in range(_count(side, crop, step))]


def _grid(tops: Sequence[int], lefts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple((top, left) for top in tops for left in lefts)
