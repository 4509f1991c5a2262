"""Street scenes drawn from a seed, with per-pixel labels: a training set without a download.

    image, labels = scene(7, 256, 512)      # uint8 (H, W, 3) and uint8 (H, W)

Scenes are straight streets seen by a pinhole camera, so classes depend on the height in the image
(sky above, road below) and many objects are long and thin (poles, lane marks, kerbs), which suits
strip pooling. The same seed and size give the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from examples.data.labels import Class
from examples.street import scenery
from examples.street.canvas import Camera, Canvas, Colour, mix

CLASSES = (
    Class("sky", (142, 202, 230)),
    Class("building", (148, 137, 150)),
    Class("road", (84, 86, 110)),
    Class("lane mark", (255, 255, 255)),
    Class("pavement", (233, 196, 166)),
    Class("vegetation", (88, 152, 90)),
    Class("pole", (250, 196, 30)),
    Class("sign", (232, 116, 24)),
    Class("car", (196, 48, 76)),
    Class("person", (123, 63, 160)),
)
LABEL = {each.name: index for index, each in enumerate(CLASSES)}

OVERSAMPLING = 3
SHORTEST = 32  # minimum side of a scene, in pixels
FAR = 160.0  # metres to the end of the street

# Zenith, horizon and sunlight colours of a clear day, an overcast one, a morning and an evening.
SKIES: tuple[tuple[Colour, Colour, Colour], ...] = (
    ((88, 148, 212), (206, 226, 240), (255, 250, 238)),
    ((150, 162, 176), (216, 220, 224), (232, 236, 240)),
    ((120, 164, 210), (246, 226, 206), (255, 238, 214)),
    ((84, 104, 160), (250, 196, 150), (255, 214, 170)),
)


def scene(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the street scene of a seed.

    Args:
        seed: any non-negative integer.
        height, width: in pixels, at least 32.

    Returns:
        The image, uint8 (H, W, 3), and the index into CLASSES of every pixel, uint8 (H, W).
    """
    if min(height, width) < SHORTEST:
        raise ValueError(
            f"scene: height and width must be at least {SHORTEST}, got {height} x {width}"
        )
    rng = np.random.default_rng(seed)
    camera = Camera(
        focal=float(rng.uniform(0.62, 0.8)) * max(width, 1.2 * height) * OVERSAMPLING,
        horizon=float(rng.uniform(0.42, 0.52)) * height * OVERSAMPLING,
        vanishing=float(rng.uniform(0.36, 0.64)) * width * OVERSAMPLING,
        above_ground=float(rng.uniform(1.5, 2.1)),
    )
    zenith, haze, light = SKIES[rng.integers(len(SKIES))]
    canvas = Canvas(width * OVERSAMPLING, height * OVERSAMPLING, camera, haze=haze, light=light)
    _paint_sky(canvas, rng, zenith, haze)
    _paint_street(canvas, rng)
    return _finish(canvas, rng, height, width)


def _paint_sky(canvas: Canvas, rng: np.random.Generator, zenith: Colour, haze: Colour) -> None:
    """A gradient, soft clouds, and hills at the end of the street."""
    bottom = canvas.camera.horizon
    steps = np.clip(np.arange(canvas.height) / bottom, 0, 1)[:, None]
    column = np.array(zenith) * (1 - steps) + np.array(haze) * steps
    column = np.broadcast_to(column[:, None], (canvas.height, canvas.width, 3))
    canvas.replace(Image.fromarray(column.astype(np.uint8)), LABEL["sky"])
    clouds = Canvas(canvas.width, canvas.height, canvas.camera, haze=haze, light=canvas.light)
    for _ in range(rng.integers(2, 7)):
        x, y = rng.uniform(0, canvas.width), rng.uniform(0.05, 0.75) * bottom
        size = rng.uniform(0.03, 0.07) * canvas.width
        for _ in range(14):
            dx, dy = rng.normal(0, 1.5) * size, rng.normal(0, 0.22) * size
            clouds.ellipse(x + dx, y + dy, size * rng.uniform(0.5, 1), size * 0.3, (255,) * 3, 1)
    soft = clouds.mask().filter(ImageFilter.GaussianBlur(canvas.width / 70))
    canvas.blend((255, 252, 248), soft.point(lambda value: int(value * 0.7)))
    hill = rng.uniform(0.01, 0.05, 40).cumsum() % 0.06 + 0.02
    line = [
        (x, bottom - canvas.height * float(h))
        for x, h in zip(
            np.linspace(0, canvas.width, 40), np.convolve(hill, [0.25] * 4, "same"), strict=True
        )
    ]
    colour = mix((92, 124, 104), haze, 0.62)
    foot = canvas.camera.project(0, 0, FAR)[1] + 1
    canvas.flat([(0, foot), *line, (canvas.width, foot)], colour, LABEL["vegetation"])


def _paint_street(canvas: Canvas, rng: np.random.Generator) -> None:
    """The ground, the two rows of houses, then the objects between them, each from far to near."""
    lanes = int(rng.integers(1, 3))  # per direction
    half = 3.3 * lanes + rng.uniform(0.2, 2.4)
    pavement = rng.uniform(2.4, 4.6)
    scenery.ground(canvas, rng, LABEL, half=half, pavement=pavement, lanes=lanes, far=FAR)
    behind: list[tuple[float, Callable[[], None]]] = []
    between: list[tuple[float, Callable[[], None]]] = []

    def add(depth: float, draw: Callable[..., None], **where: float) -> None:
        seed = int(rng.integers(2**31))  # an own seed, so that the drawing order does not matter
        layer = behind if draw is scenery.building or abs(where["x"]) > half + pavement else between
        layer.append(
            (depth, lambda: draw(canvas, np.random.default_rng(seed), LABEL, z=depth, **where))
        )

    for side in (-1, 1):
        wall = half + pavement
        depth = float(rng.uniform(-6, 3))
        while depth < FAR:
            length, gap = float(rng.uniform(8, 20)), rng.random() < 0.25
            if gap:
                for z in np.arange(depth + 2, depth + length, 3.5):
                    add(float(z), scenery.tree, x=side * (wall + rng.uniform(1, 5)))
            else:
                add(depth, scenery.building, side=side, wall=wall, length=length)
            depth += length + (0.0 if rng.random() < 0.7 else 1.5)
        spacing = float(rng.uniform(14, 24))
        for z in np.arange(rng.uniform(5, 14), 90, spacing):
            add(float(z), scenery.lamp, x=side * (half + 0.5))
        if rng.random() < 0.65:
            for z in np.arange(rng.uniform(7, 15), 100, rng.uniform(8, 15)):
                add(float(z), scenery.tree, x=side * (half + pavement * 0.45))
        for z in rng.uniform(6, 45, rng.integers(1, 5)):
            add(float(z), scenery.sign, x=side * (half + rng.uniform(0.4, 0.9)))
        for z in rng.uniform(5, 30, rng.integers(2, 9)):
            add(float(z), scenery.person, x=side * (half + rng.uniform(0.8, pavement - 0.4)))
        if rng.random() < 0.75:
            for z in np.arange(rng.uniform(6, 12), 70, rng.uniform(5.8, 9)):
                if rng.random() < 0.6:
                    add(float(z), scenery.car, x=side * (half - 1.1), away=1)
    for lane in range(lanes):
        for side in (-1, 1):
            for z in np.cumsum(rng.uniform(9, 34, rng.integers(1, 4))):
                add(float(z), scenery.car, x=side * (1.65 + 3.3 * lane), away=side)
    for layer in (behind, between):
        for _, draw in sorted(layer, key=lambda thing: -thing[0]):
            draw()


def _finish(
    canvas: Canvas, rng: np.random.Generator, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Downscales to the requested size, and adds sensor noise and vignetting."""
    small = canvas.image.resize((width, height), Image.Resampling.BOX)
    pixels: np.ndarray = np.asarray(small, dtype=np.float32)
    rough = np.asarray(canvas.labels)[OVERSAMPLING // 2 :: OVERSAMPLING]
    labels = np.ascontiguousarray(rough[:, OVERSAMPLING // 2 :: OVERSAMPLING])
    pixels = pixels + rng.normal(0, 2.2, pixels.shape[:2])[..., None]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    pixels = pixels * (1 - 0.12 * (x**2 + y**2) ** 1.5 / 2.83)[..., None]
    return np.clip(pixels, 0, 255).astype(np.uint8), labels
