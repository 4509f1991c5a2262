"""The objects of a street: ground, buildings, trees, lamps, signs, cars, people.

Each function draws one object on a canvas at a position in metres (x to the right, z ahead) with a
random appearance. `label` maps class names to label values.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from examples.street.canvas import NEAR, Canvas, Colour, mix, shade

Labels = dict[str, int]
Random = np.random.Generator

WALLS: tuple[Colour, ...] = (
    (178, 120, 96),
    (204, 188, 160),
    (150, 152, 158),
    (214, 204, 192),
    (166, 142, 122),
    (130, 112, 108),
    (196, 164, 132),
    (120, 136, 150),
)
PAINTS: tuple[Colour, ...] = (
    (188, 44, 44),
    (44, 82, 148),
    (232, 232, 236),
    (52, 54, 60),
    (158, 164, 172),
    (216, 160, 52),
    (58, 112, 92),
)
CLOTHES: tuple[Colour, ...] = (
    (64, 72, 110),
    (150, 56, 60),
    (226, 214, 196),
    (52, 52, 56),
    (84, 128, 150),
    (206, 154, 62),
)
GLASS: Colour = (44, 58, 74)
METAL: Colour = (88, 94, 100)


def pick(rng: Random, colours: tuple[Colour, ...]) -> Colour:
    """One of the colours, slightly brighter or darker."""
    return shade(colours[rng.integers(len(colours))], float(rng.uniform(0.9, 1.1)))


def ground(
    canvas: Canvas,
    rng: Random,
    label: Labels,
    *,
    half: float,
    pavement: float,
    lanes: int,
    far: float,
) -> None:
    """Verge, pavement with joints, kerb, road with patches and lane marks."""

    def strip(left: float, right: float, near: float, end: float, paint: Colour, name: str) -> None:
        steps = np.geomspace(max(near, NEAR), max(end, NEAR + 0.01), 1 + math.ceil(end / 12))
        for z0, z1 in itertools.pairwise(steps):  # in pieces, because haze depends on z
            corners = [(left, 0.0, z0), (right, 0.0, z0), (right, 0.0, z1), (left, 0.0, z1)]
            canvas.face(corners, paint, label[name])

    asphalt = mix((98, 98, 104), (128, 124, 118), float(rng.random()))
    paving = mix((176, 168, 158), (196, 184, 170), float(rng.random()))
    strip(-90, 90, NEAR, far, (116, 146, 88), "vegetation")
    for side in (-1, 1):
        strip(side * half, side * (half + pavement), NEAR, far, paving, "pavement")
        for z in np.arange(2, 40, 1.5):
            strip(
                side * half, side * (half + pavement), z, z + 0.04, shade(paving, 0.9), "pavement"
            )
    strip(-half, half, NEAR, far, asphalt, "road")
    for _ in range(rng.integers(3, 9)):
        x, z = rng.uniform(-half + 1, half - 1), rng.uniform(4, 40)
        patch = shade(asphalt, float(rng.uniform(0.88, 1.08)))
        strip(
            x - rng.uniform(0.3, 1),
            x + rng.uniform(0.3, 1),
            z,
            z + rng.uniform(1, 5),
            patch,
            "road",
        )
    for side in (-1, 1):
        strip(side * half, side * (half + 0.22), NEAR, far, shade(paving, 1.14), "pavement")
    white: Colour = (238, 236, 228)
    crossing = float(rng.uniform(7, 16)) if rng.random() < 0.4 else None
    for x in [side * 3.3 * lane for lane in range(1, lanes) for side in (-1, 1)] + [0.0]:
        solid = x == 0.0 and rng.random() < 0.35
        for z in np.arange(rng.uniform(NEAR, 5), 110, 7.5):
            if crossing is None or not crossing - 4 < z < crossing + 3.5:
                strip(x - 0.09, x + 0.09, z, z + (7.6 if solid else 3.2), white, "lane mark")
    for side in (-1, 1):
        edge = side * (3.3 * lanes + 0.1)
        strip(edge - 0.07, edge + 0.07, NEAR, 120, white, "lane mark")
    if crossing is not None:
        for x in np.arange(-half + 0.5, half - 0.4, 1.05):
            strip(x, x + 0.55, crossing, crossing + 3.2, white, "lane mark")


def building(
    canvas: Canvas,
    rng: Random,
    label: Labels,
    *,
    z: float,
    side: float,
    wall: float,
    length: float,
) -> None:
    """A block with its near end and street front visible, with windows, a cornice and a shop."""
    floors, floor_height = int(rng.integers(2, 8)), 3.3
    height = floors * floor_height + 1.2
    paint, name = pick(rng, WALLS), label["building"]
    glass = mix(GLASS, canvas.haze, float(rng.uniform(0.05, 0.4)))
    x0, x1 = side * wall, side * (wall + 14)
    z0, z1 = max(z, NEAR), z + length
    if z1 <= NEAR + 0.5:
        return
    if z > NEAR:
        end = [(x0, 0.0, z0), (x1, 0.0, z0), (x1, height, z0), (x0, height, z0)]
        canvas.face(end, shade(paint, 0.82), name)
        for storey in range(floors):
            for x in np.arange(wall + 1.6, wall + 13, 3.0):
                bottom = 1.1 + storey * floor_height
                canvas.upright(side * x, z0, (1.2, 1.6), shade(glass, 0.9), name, bottom=bottom)

    def front(near: float, end: float, low: float, high: float, colour: Colour) -> None:
        near = max(near, NEAR)
        if end > near:
            corners = [(x0, low, near), (x0, low, end), (x0, high, end), (x0, high, near)]
            canvas.face(corners, colour, name)

    for piece in np.arange(z, z1, 4.0):  # in pieces, because haze depends on z
        front(piece, min(piece + 4.0, z1), 0, height, paint)
    front(z, z1, height - 0.5, height, shade(paint, 1.16))
    front(z, z1, floor_height + 0.05, floor_height + 0.35, shade(paint, 0.8))
    spacing, wide = float(rng.uniform(2.2, 3.2)), float(rng.uniform(1.0, 1.5))
    tall = float(rng.uniform(1.4, 1.9))
    awning = pick(rng, PAINTS) if rng.random() < 0.5 else None
    for w in np.arange(z + 0.8, z1 - wide - 0.2, spacing):
        front(w - 0.2, min(w + spacing - 0.6, z1 - 0.2), 0.4, 2.7, shade(glass, 0.8))
        for storey in range(1, floors):
            low = storey * floor_height + 0.9
            front(w - 0.12, w + wide + 0.12, low - 0.16, low + tall + 0.1, shade(paint, 1.12))
            lit = rng.random() < 0.12
            front(w, w + wide, low, low + tall, (236, 206, 140) if lit else glass)
    if awning is not None:
        front(z + 0.5, z1 - 0.5, 2.7, 3.3, awning)


def tree(canvas: Canvas, rng: Random, label: Labels, *, x: float, z: float) -> None:
    """A trunk and a crown of leaves, lit from above."""
    name, reach = label["vegetation"], float(rng.uniform(1.3, 2.1))
    middle = float(rng.uniform(3.4, 4.8))
    canvas.upright(x, z, (0.3, middle), (92, 72, 56), name)
    green = mix((62, 112, 58), (128, 142, 62), float(rng.random()))
    places = rng.normal(0, 0.45, (70, 2))
    places /= np.maximum(1, np.linalg.norm(places, axis=1) / 0.85)[:, None]
    for across, up in places[np.argsort(places[:, 1])]:
        lightness = 0.85 + 0.3 * float(np.clip(up, -1, 1.2)) + float(rng.uniform(-0.08, 0.08))
        radius = reach * float(rng.uniform(0.16, 0.36))
        at = x + reach * float(across), middle + 0.5 + 1.1 * reach * float(up), z
        canvas.disc(*at, radius, shade(green, lightness), name)


def lamp(canvas: Canvas, rng: Random, label: Labels, *, x: float, z: float) -> None:
    """A street lamp whose arm reaches over the road."""
    height, inward = float(rng.uniform(5.5, 7.5)), -math.copysign(1.6, x)
    name = label["pole"]
    canvas.upright(x, z, (0.15, height), METAL, name)
    canvas.upright(x, z, (0.28, 0.8), shade(METAL, 0.85), name)
    arm = [(x, height - 0.1), (x + inward, height + 0.35), (x + inward, height + 0.47), (x, height)]
    canvas.face([(px, py, z) for px, py in arm], METAL, name)
    canvas.upright(x + inward, z, (0.7, 0.16), (226, 220, 196), name, bottom=height + 0.3)


def sign(canvas: Canvas, rng: Random, label: Labels, *, x: float, z: float) -> None:
    """A round, triangular or square sign, or a traffic light, on a pole."""
    kind, name = int(rng.integers(4)), label["sign"]
    height = 3.2 if kind == 3 else float(rng.uniform(2.3, 2.8))
    canvas.upright(x, z, (0.1, height), METAL, label["pole"])
    red, white, blue = (196, 40, 44), (244, 244, 240), (36, 84, 164)
    if kind == 0:
        canvas.disc(x, height, z, 0.42, red, name)
        canvas.disc(x, height, z, 0.29, white, name)
    elif kind == 1:
        for reach, colour in ((0.52, red), (0.32, white)):
            corners = [(x - reach, height - 0.58 * reach, z), (x + reach, height - 0.58 * reach, z)]
            canvas.face([*corners, (x, height + 1.1 * reach, z)], colour, name)
    elif kind == 2:
        canvas.upright(x, z, (0.76, 0.76), white, name, bottom=height - 0.38)
        canvas.upright(x, z, (0.66, 0.66), blue, name, bottom=height - 0.33)
    else:
        canvas.upright(x, z, (0.42, 1.1), (38, 40, 44), name, bottom=height - 0.6)
        for index, colour in enumerate(((226, 60, 48), (90, 74, 40), (40, 84, 58))):
            canvas.disc(x, height + 0.3 - 0.34 * index, z, 0.13, colour, name)


def person(canvas: Canvas, rng: Random, label: Labels, *, x: float, z: float) -> None:
    """A person standing or walking."""
    name, tall = label["person"], float(rng.uniform(1.5, 1.85))
    coat, trousers = pick(rng, CLOTHES), shade(pick(rng, CLOTHES), 0.7)
    step = float(rng.uniform(0.02, 0.2))
    for foot in (-step, step):
        leg = [(x - 0.09, 0.46), (x + 0.09, 0.46), (x + foot + 0.07, 0.0), (x + foot - 0.07, 0.0)]
        canvas.face([(px, py * tall, z) for px, py in leg], trousers, name)
    torso = [(-0.2, 0.44), (0.2, 0.44), (0.24, 0.6), (0.2, 0.82), (-0.2, 0.82), (-0.24, 0.6)]
    canvas.face([(x + px, py * tall, z) for px, py in torso], coat, name)
    canvas.disc(x, 0.9 * tall, z, 0.13, (206, 162, 134), name)
    canvas.disc(x, 0.935 * tall, z, 0.12, (70, 52, 42), name)


def car(canvas: Canvas, rng: Random, label: Labels, *, x: float, z: float, away: float) -> None:
    """A car seen from behind (away > 0) or from the front, and the side that faces the camera."""
    name, paint = label["car"], pick(rng, PAINTS)
    tall, long = float(rng.uniform(1.4, 1.75)), float(rng.uniform(3.8, 4.6))
    belt, slope, inset = 0.58 * tall, 0.07 * long, 0.16
    # Along the car from its nearer end: start and end of the cabin, at the belt and at the roof.
    cabin = (0.0, 0.08, 0.58, 0.8) if away > 0 else (0.26, 0.42, 0.9, 1.0)
    start, top_start, top_end, end = (z + share * long for share in cabin)
    outward = 1 if x < 0 else -1  # the visible side

    def side(profile: list[tuple[float, float]], colour: Colour) -> None:
        """Draws a side from (z, height) corners; above the belt it leans inward."""
        corners = []
        for along, y in profile:
            lean = inset * max(0.0, y - belt) / (tall - belt)
            corners.append((x + outward * (0.9 - lean), y, along))
        canvas.face(corners, colour, name)

    def across(
        low: tuple[float, float], high: tuple[float, float], paint: Colour, margin: float
    ) -> None:
        """Draws a panel across the car between two (z, height), narrower by a margin."""
        w, v = (
            0.9 - inset * max(0.0, y - belt) / (tall - belt) - margin for y in (low[1], high[1])
        )
        corners = [(x - w, low[1], low[0]), (x + w, low[1], low[0])]
        canvas.face([*corners, (x + v, high[1], high[0]), (x - v, high[1], high[0])], paint, name)

    shadow = [(x - 1, 0.0, z - 0.1), (x + 1, 0.0, z - 0.1), (x + 1, 0.0, z + long)]
    canvas.face([*shadow, (x - 1, 0.0, z + long)], (46, 46, 50), None)
    for wheel_x in (x - 0.68, x + 0.68):
        canvas.upright(wheel_x, z + 0.1, (0.24, 0.4), (28, 28, 32), name)
    dark = shade(paint, 0.76)
    side([(z, 0.25), (z + long, 0.25), (z + long, belt), (z, belt)], dark)
    side([(start, belt), (end, belt), (top_end, tall), (top_start, tall)], dark)
    low, high = belt + 0.02, tall - 0.09
    side(
        [(start + slope, low), (end - slope, low), (top_end, high), (top_start + 0.2, high)], GLASS
    )
    for along in (0.2, 0.8):
        angles = np.linspace(0, 2 * math.pi, 16, endpoint=False)
        side(
            [(z + along * long + 0.33 * math.cos(a), 0.33 + 0.33 * math.sin(a)) for a in angles],
            (32, 32, 36),
        )
    across((top_start, tall), (top_end, tall), shade(paint, 1.18), 0)
    across((z, belt), (start, belt), shade(paint, 1.1), 0)
    across((start, belt), (top_start, tall), shade(paint, 0.95), 0)
    tilt = (top_start - start) / (tall - belt)
    panes = [(start + tilt * (y - belt), y) for y in (belt + 0.05, tall - 0.09)]
    across(panes[0], panes[1], GLASS, 0.1)
    across((z, 0.25), (z, belt), paint, 0)
    across((z, 0.25), (z, 0.4), shade(paint, 0.6), 0)
    lights: Colour = (214, 40, 40) if away > 0 else (250, 244, 214)
    for light_x in (x - 0.7, x + 0.7):
        canvas.upright(light_x, z, (0.28, 0.16), lights, name, bottom=0.68 * belt)
    canvas.upright(x, z, (0.46, 0.13), (236, 236, 228), name, bottom=0.44)
