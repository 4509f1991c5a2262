"""The figure of the convolution over a pyramid: both methods from one level to the same map."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import floors
from benchmarks.costs import magnitude
from docs.draw import style
from docs.draw.style import Page
from stripctx import functional

CELLS, CHANNELS, SIZE = 6, 8, (30, 60)
PSPNET, SIDE = 512, 60  # channels of a level and of the result; rows and columns of the map


def pyramid_pooling_conv() -> Page:
    """Above: interpolate, then convolve. Below: convolve to nine taps, interpolate and add."""
    generator = torch.Generator().manual_seed(7)
    level = torch.randn((1, CHANNELS, CELLS, CELLS), generator=generator, dtype=torch.float64)
    weight = torch.randn((1, CHANNELS, 3, 3), generator=generator, dtype=torch.float64)
    up = F.interpolate(level, SIZE, mode="bilinear", align_corners=True)
    above = F.conv2d(up, weight, padding=1)
    nothing = torch.zeros((1, 1, *SIZE), dtype=torch.float64)  # x is 0: only the level matters
    joined = F.pad(weight, (0, 0, 0, 0, 1, 0))
    below = functional.pyramid_conv(nothing, [level], joined, padding=1, align_corners=True)
    taps = torch.einsum("ocyx,bcij->yxij", weight, level)
    assert torch.allclose(above, below, rtol=0, atol=1e-12)

    convolved = 9 * len(floors.PSP_BINS) * PSPNET * PSPNET * SIDE**2
    tapped = sum(b * b for b in floors.PSP_BINS) * 9 * PSPNET * PSPNET
    on_maps = convolved + interpolation("pyramid_concat", floors.Shape(1, 4 * PSPNET, SIDE, SIDE))
    on_cells = tapped + interpolation("pyramid_taps_add", floors.Shape(1, PSPNET, SIDE, SIDE))
    page = Page(3.32)
    for top, first, middle, second, work in (
        (0.3, "interpolate", "interpolated: every channel", "conv 3x3", on_maps),
        (1.85, "conv 1x1", "nine taps, still 6 x 6 cells", "interpolate,\nshift, add", on_cells),
    ):
        _map(page, (0, top + 0.15, 0.9, 0.9), level[0, 0], f"a level, {CELLS} x {CELLS}")
        page.arrow((1.0, top + 0.6), (1.95, top + 0.6))
        page.text(1.47, top + 0.54, first, ha="center", va="bottom", fontsize=7.5)
        page.arrow((4.55, top + 0.6), (5.5, top + 0.6))
        page.text(5.0, top + 0.54, second, ha="center", va="bottom", fontsize=7.5)
        page.text(2.15, top - 0.12, middle, weight="bold")
        cost = f"PSPNet's four levels: {magnitude(work)} multiply-adds an image"
        page.text(2.15, top + 1.22, cost, fontsize=7.5, color=style.FAINT)
    _map(page, (2.15, 0.35, 2.3, 1.1), up[0, 0], "")
    for y in range(3):
        for x in range(3):
            _map(page, (2.15 + x * 0.8, 1.9 + y * 0.37, 0.7, 0.33), taps[y, x], "")
    for top, result in ((0.3, above), (1.85, below)):
        _map(page, (5.65, top + 0.05, 2.3, 1.1), result[0, 0], "")
        page.text(5.65, top - 0.12, "one channel of the result", weight="bold")
    return page


def interpolation(operator: str, shape: floors.Shape) -> int:
    """The number of multiply-adds, two operations each."""
    return floors.floor(operator, shape).operations // 2


def _map(page: Page, box: tuple[float, float, float, float], values: Tensor, title: str) -> None:
    axes = page.axes(*box)
    limit = float(values.abs().max())
    shades = np.round(values.numpy() / limit * 12) / 12
    style.picture(axes, shades, cmap=style.ramp(style.BLUE, style.VERMILLION), vmin=-1, vmax=1)
    axes.set_title(title)
