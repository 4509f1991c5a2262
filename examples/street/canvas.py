"""The canvas of a scene: a pinhole camera over flat ground, and an image with its label map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

NEAR = 1.2  # metres; nearer parts are clipped
HAZE_LENGTH = 130.0  # metres in which haze replaces 63 % of an object's colour


def mix(first: Colour, second: Sequence[float], share: float) -> Colour:
    """Blends `first` with a share, 0 to 1, of `second`."""
    r, g, b = (
        round(min(255.0, max(0.0, a + (c - a) * share))) for a, c in zip(first, second, strict=True)
    )
    return r, g, b


def shade(colour: Colour, factor: float) -> Colour:
    """Scales the brightness: darker below 1, brighter above."""
    r, g, b = (round(min(255.0, value * factor)) for value in colour)
    return r, g, b


@dataclass(frozen=True)
class Camera:
    """Looks along the street. x is in metres to the right, y above the ground, z ahead."""

    focal: float  # in pixels
    horizon: float  # a row of the image
    vanishing: float  # a column of the image
    above_ground: float  # in metres

    def project(self, x: float, y: float, z: float) -> Point:
        scale = self.scale(z)
        return self.vanishing + x * scale, self.horizon + (self.above_ground - y) * scale

    def scale(self, z: float) -> float:
        """Pixels per metre at distance z."""
        return self.focal / max(z, NEAR)


class Canvas:
    """An image and its label map, painted together."""

    def __init__(
        self, width: int, height: int, camera: Camera, *, haze: Colour, light: Colour
    ) -> None:
        self.width, self.height = width, height
        self.camera, self.haze, self.light = camera, haze, light
        self.image = Image.new("RGB", (width, height))
        self.labels = Image.new("L", (width, height))
        self._paint = ImageDraw.Draw(self.image)
        self._label = ImageDraw.Draw(self.labels)

    def replace(self, image: Image.Image, label: int) -> None:
        self.image.paste(image)
        self._label.rectangle((0, 0, self.width, self.height), fill=label)

    def blend(self, colour: Colour, mask: Image.Image) -> None:
        """Blends `colour` into the image with the mask as opacity; labels do not change."""
        self.image.paste(Image.new("RGB", self.image.size, colour), mask=mask)

    def mask(self) -> Image.Image:
        """255 where a label other than 0 was painted, else 0."""
        return self.labels.point(lambda value: 255 if value else 0)

    def seen(self, colour: Colour, z: float) -> Colour:
        """A colour in this light, through z metres of haze."""
        r, g, b = (value * light / 255 for value, light in zip(colour, self.light, strict=True))
        lit = (round(r), round(g), round(b))
        return mix(lit, self.haze, 1 - math.exp(-max(z, 0.0) / HAZE_LENGTH))

    def flat(self, points: Sequence[Point], colour: Colour, label: int | None) -> None:
        """Fills a polygon in pixels. With label None, the label map does not change."""
        self._paint.polygon(points, fill=colour)
        if label is not None:
            self._label.polygon(points, fill=label)

    def ellipse(
        self, x: float, y: float, across: float, up: float, colour: Colour, label: int | None
    ) -> None:
        """Fills an ellipse around (x, y), in pixels."""
        box = (x - across, y - up, x + across, y + up)
        self._paint.ellipse(box, fill=colour)
        if label is not None:
            self._label.ellipse(box, fill=label)

    def face(
        self, corners: Sequence[tuple[float, float, float]], colour: Colour, label: int | None
    ) -> None:
        """Fills a polygon in metres, with the haze of its nearest corner."""
        nearest = min(z for _, _, z in corners)
        points = [self.camera.project(*corner) for corner in corners]
        self.flat(points, self.seen(colour, nearest), label)

    def upright(
        self,
        x: float,
        z: float,
        size: tuple[float, float],
        colour: Colour,
        label: int | None,
        *,
        bottom: float = 0.0,
    ) -> None:
        """Fills a rectangle (width, height) in metres that faces the camera."""
        left, right, top = x - size[0] / 2, x + size[0] / 2, bottom + size[1]
        corners = [(left, bottom, z), (right, bottom, z), (right, top, z), (left, top, z)]
        self.face(corners, colour, label)

    def disc(
        self, x: float, y: float, z: float, radius: float, colour: Colour, label: int | None
    ) -> None:
        """Fills a circle in metres that faces the camera."""
        size = radius * self.camera.scale(z)
        self.ellipse(*self.camera.project(x, y, z), size, size, self.seen(colour, z), label)
