"""Augmentation of training scenes: scale, rotation, flip, crop, blur, colour jitter.

The geometric part is a single affine map from the scene to the crop with a single resampling:
bilinear for the image, nearest for labels and heights. They stay aligned, no enlarged image is
allocated, and a crop costs the same at every scale. The result equals scaling, rotating, flipping,
padding and cropping in sequence.

Random numbers depend only on the seed, the epoch and the index of the scene, not on the reading
order or the process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from kornia import enhance, filters
from kornia.geometry.transform import warp_affine
from torch import Tensor

from examples import ranges
from examples.data.labels import IGNORE
from examples.data.pairs import Scene, Scenes
from examples.ranges import number

HEIGHTS = 128  # steps from the top to the bottom of an uncropped image; padding has this value


@dataclass
class Augmentation:
    """Random variations of training scenes. By default none is applied.

    crop: height and width of the training crops.
    scale: the range of the scale factor, drawn uniformly.
    long_side: if positive, the longer side is scaled to this many pixels, times the scale factor.
    rotation: maximum angle in degrees in either direction, drawn uniformly with probability
        rotation_chance.
    flip_chance: probability of a left-right flip.
    blur_chance: probability of a Gaussian blur of blur_kernel pixels, with a sigma from blur_sigma.
    jitter: brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter, and the
        hue is shifted by up to jitter turns.
    padding: the colour outside the image: `mean`, ImageNet's mean, or `black`. It has no label.
    padded: where smaller images are padded: `around`, or `after`, at the right and the bottom.
    mean, std: the normalisation of the three channels, which range from 0 to 1.
    """

    crop: list[int] = field(default_factory=lambda: [256, 256])
    scale: list[float] = field(default_factory=lambda: [1.0, 1.0])
    long_side: int = number(0, low=0)
    rotation: float = number(0.0, low=0, high=180)
    rotation_chance: float = number(0.5, low=0, high=1)
    flip_chance: float = number(0.5, low=0, high=1)
    blur_chance: float = number(0.0, low=0, high=1)
    blur_kernel: int = 5
    blur_sigma: list[float] = field(default_factory=lambda: [1.1, 1.1])
    jitter: float = number(0.0, low=0, high=0.5)
    padding: str = "mean"
    padded: str = "around"
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])

    def check(self) -> None:
        """Raises ValueError for invalid settings."""
        ranges.check("augmentation", self)
        for name, length in (("crop", 2), ("scale", 2), ("blur_sigma", 2), ("mean", 3), ("std", 3)):
            values = getattr(self, name)
            if len(values) != length or min(values) <= 0:
                raise ValueError(
                    f"augmentation.{name}: must be {length} positive numbers, got {values}"
                )
        for name in ("scale", "blur_sigma"):
            if sorted(values := getattr(self, name)) != values:
                raise ValueError(f"augmentation.{name}: must be a range, got {values}")
        for name, known in (("padding", ("mean", "black")), ("padded", ("around", "after"))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"augmentation.{name}: must be {' or '.join(known)}, got {getattr(self, name)}"
                )
        if self.blur_kernel % 2 == 0 or self.blur_kernel < 1:
            raise ValueError(f"augmentation.blur_kernel: must be odd, got {self.blur_kernel}")


class Example(NamedTuple):
    """A training example: the image, float32 (3, H, W), normalised; labels, int64 (H, W); and
    heights, uint8 (H, W), HANet's positions: 0 to 127 from top to bottom of the uncropped image,
    128 for padding. Can be batched by torch's default collation."""

    image: Tensor
    labels: Tensor
    heights: Tensor


class Key(NamedTuple):
    """The epoch and scene, which determine the random augmentation. `turn` distinguishes crops of
    the same scene in an epoch; `centre`, (row, column) of the scene, is a pixel to crop around."""

    epoch: int
    index: int
    turn: int = 0
    centre: tuple[int, int] | None = None


class Augmented:
    """Augmented scenes: a map-style dataset of `Example`s, indexed by `Key`s."""

    def __init__(self, scenes: Scenes, settings: Augmentation, seed: int) -> None:
        settings.check()
        self.scenes, self.settings, self.seed = scenes, settings, seed

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, key: Key) -> Example:
        rng = np.random.default_rng((self.seed, key.epoch, key.index, key.turn))
        return augment(self.scenes[key.index], self.settings, rng, key.centre)


def augment(
    scene: Scene,
    settings: Augmentation,
    rng: np.random.Generator,
    centre: tuple[int, int] | None = None,
) -> Example:
    """One random variation of a scene. With a `centre`, (row, column), the crop contains that pixel
    at a random position, unless the rotation moves it out of the image."""
    height, width = scene.labels.shape
    drawn = _draw_matrix(height, width, settings, rng, centre)
    matrix = torch.from_numpy(drawn[None, :2]).float()
    crop = (settings.crop[0], settings.crop[1])

    def warp(maps: Tensor, fill: Tensor | float, mode: str) -> Tensor:
        """Subtracts `fill` before sampling, so that pixels outside the image, 0, become `fill`."""
        return warp_affine(maps[None] - fill, matrix, crop, mode)[0] + fill

    mean = torch.tensor(settings.mean)[:, None, None]
    fill = mean if settings.padding == "mean" else 0.0
    image = warp(to_tensor(scene.image), fill, "bilinear").clamp(0, 1)
    labels = warp(torch.from_numpy(scene.labels)[None].float(), IGNORE, "nearest")[0]
    positions = warp(heights(height, width)[None].float(), HEIGHTS, "nearest")[0]
    image = _blur(_jitter(image, settings, rng), settings, rng)
    return Example(
        normalise(image, settings), labels.round().long(), positions.round().to(torch.uint8)
    )


def to_tensor(image: np.ndarray) -> Tensor:
    """Converts uint8 (H, W, 3) to float32 (3, H, W) from 0 to 1."""
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)


def normalise(image: Tensor, settings: Augmentation) -> Tensor:
    """Normalises (..., 3, H, W) from 0 to 1 to a mean near 0 and a standard deviation near 1."""
    mean, std = (torch.tensor(v).to(image)[:, None, None] for v in (settings.mean, settings.std))
    return (image - mean) / std


def heights(height: int, width: int) -> Tensor:
    """HANet's positions of an uncropped image, uint8 (H, W): 0 in the top row, 127 in the last."""
    rows = torch.arange(height) * HEIGHTS // height
    return rows.to(torch.uint8)[:, None].expand(height, width)


def _draw_matrix(
    height: int,
    width: int,
    settings: Augmentation,
    rng: np.random.Generator,
    centre: tuple[int, int] | None,
) -> np.ndarray:
    """(3, 3): maps pixels (x, y, 1) of the scene to those of the crop; centres are integers."""
    factor = rng.uniform(settings.scale[0], settings.scale[1])
    if settings.long_side > 0:
        factor *= settings.long_side / max(height, width)
    scaled_height, scaled_width = max(1, round(height * factor)), max(1, round(width * factor))
    matrix = _scale(scaled_width / width, scaled_height / height)
    turned = rng.random() < settings.rotation_chance
    angle = rng.uniform(-settings.rotation, settings.rotation)
    if turned and settings.rotation:
        matrix = _rotate(angle, (scaled_width - 1) / 2, (scaled_height - 1) / 2) @ matrix
    if rng.random() < settings.flip_chance:
        matrix = np.array([[-1.0, 0, scaled_width - 1], [0, 1, 0], [0, 0, 1]]) @ matrix
    target = None if centre is None else matrix @ (centre[1], centre[0], 1)
    shifts = []
    for axis, size, crop in (
        (0, scaled_width, settings.crop[1]),
        (1, scaled_height, settings.crop[0]),
    ):
        missing = max(crop - size, 0)
        before = missing // 2 if settings.padded == "around" else 0
        last = size + missing - crop
        if target is None:
            start = int(rng.integers(last + 1))
        else:
            start = round(target[axis]) + before - int(rng.integers(crop))
        shifts.append(before - min(max(start, 0), last))
    return np.array([[1.0, 0, shifts[0]], [0, 1, shifts[1]], [0, 0, 1]]) @ matrix


def _scale(across: float, down: float) -> np.ndarray:
    """Scales about the image's corner, which is half a pixel outside the first pixel's centre."""
    return np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2], [0, 0, 1]])


def _rotate(degrees: float, x: float, y: float) -> np.ndarray:
    """Rotates about the point (x, y)."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array(
        [[cos, sin, x - cos * x - sin * y], [-sin, cos, y + sin * x - cos * y], [0, 0, 1]]
    )


def _jitter(image: Tensor, settings: Augmentation, rng: np.random.Generator) -> Tensor:
    """Applies the changes in random order, like torchvision's ColorJitter, which upstream uses."""
    if settings.jitter == 0:
        return image
    brightness, contrast, saturation = rng.uniform(1 - settings.jitter, 1 + settings.jitter, 3)
    turn = rng.uniform(-settings.jitter, settings.jitter)
    steps = (
        lambda x: enhance.adjust_brightness_accumulative(x, brightness),
        lambda x: enhance.adjust_contrast_with_mean_subtraction(x, contrast),
        lambda x: enhance.adjust_saturation_with_gray_subtraction(x, saturation),
        lambda x: enhance.adjust_hue(x, 2 * math.pi * turn),
    )
    for which in rng.permutation(len(steps)):
        image = steps[which](image)
    return image


def _blur(image: Tensor, settings: Augmentation, rng: np.random.Generator) -> Tensor:
    if rng.random() >= settings.blur_chance:
        return image
    sigma = rng.uniform(settings.blur_sigma[0], settings.blur_sigma[1])
    kernel = (settings.blur_kernel, settings.blur_kernel)
    return filters.gaussian_blur2d(image[None], kernel, (sigma, sigma))[0]
