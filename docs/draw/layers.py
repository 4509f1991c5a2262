"""One figure per layer: its receptive field."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from docs.draw import fields, style
from docs.draw.fields import MAP, POSITION
from docs.draw.style import Page
from examples.street import scenes

PANEL, GAP, TITLE = 2.5, 0.25, 0.22  # in inches
STREETS = 64
HEIGHT = PANEL * MAP[0] / MAP[1]


def panel(page: Page, index: int, title: str, columns: int = 3) -> Axes:
    """The next panel in a grid of maps."""
    left = index % columns * (PANEL + GAP)
    axes = page.axes(left, TITLE + index // columns * (HEIGHT + 0.3), PANEL, HEIGHT)
    axes.set_title(title)
    style.bare(axes)
    return axes


def grid_height(rows: int) -> float:
    return rows * (HEIGHT + 0.3)


def scene_panel(axes: Axes) -> None:
    _, labels = fields.street(3 * MAP[0], 3 * MAP[1])
    extent = (-0.5, MAP[1] - 0.5, MAP[0] - 0.5, -0.5)
    style.picture(axes, fields.class_colours()[labels], extent=extent)
    style.mark(axes, *POSITION, "black")


def overview() -> Page:
    """For the README: five layers, one output position each."""
    page = Page(grid_height(2))
    scene_panel(panel(page, 0, "A street, and one position of a map"))
    panels = (
        ("StripPooling: row, column", fields.strip_pooling()),
        ("MixedPooling: near, row, column", fields.mixed_pooling("both")),
        ("PyramidPooling: regions", fields.pyramid_pooling((1, 2, 3, 6))),
        ("HeightAttention: rows", fields.height_attention()),
        ("ContextEncoding: everything", fields.context_encoding()),
    )
    for index, (title, field) in enumerate(panels):
        fields.overlay(panel(page, index + 1, title), field)
    return page


def strip_pooling() -> Page:
    """The cross on the whole map, and a close-up of its centre."""
    field = fields.strip_pooling()
    page = Page(2.45)
    axes = page.axes(0, TITLE, 4.35, 2.175)
    fields.overlay(axes, field)
    axes.set_title("One output position looks along its row and its column")
    reach = 7
    row, column = POSITION
    near = field[row - reach : row + reach + 1, column - reach : column + reach + 1].copy()
    near[reach, reach] = np.nan
    axes = page.axes(4.75, TITLE, 2.175, 2.175)
    drawn = axes.imshow(
        near / np.nanmax(near), cmap=style.ramp(style.BLUE), vmin=0, vmax=1, interpolation="none"
    )
    style.bare(axes)
    axes.text(reach, reach, "x", ha="center", va="center", color=style.VERMILLION, weight="bold")
    style.mark(axes, reach, reach)
    axes.set_title("From near: strips of three")
    bar = page.figure.colorbar(drawn, cax=page.axes(7.05, TITLE, 0.12, 2.175), ticks=(0, 0.5, 1))
    bar.outline.set_visible(False)
    bar.set_label("derivative, largest = 1", fontsize=7.5)
    return page


def mixed_pooling() -> Page:
    page = Page(grid_height(1))
    titles = {
        "short": '"short": around it, in two pyramids',
        "long": '"long": its row and its column',
        "both": '"both"',
    }
    for index, (arms, title) in enumerate(titles.items()):
        fields.overlay(panel(page, index, title), fields.mixed_pooling(arms))
    return page


def pyramid_pooling() -> Page:
    """Each branch alone, with its bins drawn as lines, and all four."""
    page = Page(grid_height(2))
    scene_panel(panel(page, 0, "A street, and one position of a map"))
    for index, bins in enumerate((1, 2, 3, 6)):
        title = f"{bins} x {bins} bins" if bins > 1 else "1 bin"
        axes = panel(page, index + 1, title)
        fields.overlay(axes, fields.pyramid_pooling((bins,)))
        for step in range(1, bins):
            axes.axhline(step * MAP[0] / bins - 0.5, color="white", lw=0.7)
            axes.axvline(step * MAP[1] / bins - 0.5, color="white", lw=0.7)
    fields.overlay(panel(page, 5, "all branches"), fields.pyramid_pooling((1, 2, 3, 6)))
    return page


def height_attention() -> Page:
    """The bands, the frequency of classes by height in many scenes, and the rows an output sees."""
    page = Page(1.9)
    axes = panel(page, 0, "Sixteen bands of rows are averaged")
    _, labels = fields.street(3 * MAP[0], 3 * MAP[1])
    extent = (-0.5, MAP[1] - 0.5, MAP[0] - 0.5, -0.5)
    style.picture(axes, fields.class_colours()[labels], extent=extent)
    for band in range(1, 16):
        axes.axhline(band * MAP[0] / 16 - 0.5, color="white", lw=0.8)
    axes = panel(page, 1, f"Classes by height, in {STREETS} streets")
    ends = fields.classes_by_row(STREETS).cumsum(1)
    across = (np.arange(128) + 0.5) / 128
    drawn = (across[None, :, None] > ends[:, None, :-1]).sum(2)
    style.picture(axes, fields.class_colours()[drawn])
    fields.overlay(panel(page, 2, "One output sees the bands near it"), fields.height_attention())
    axes = page.axes(0.02, TITLE + HEIGHT + 0.13, 7.9, 0.15)
    style.bare(axes)
    colours = fields.class_colours() / 255
    entries = [(tuple(c), each.name) for c, each in zip(colours, scenes.CLASSES, strict=True)]
    style.legend(axes, entries, loc="upper left", ncols=len(entries), mode="expand")
    return page
