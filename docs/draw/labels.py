"""The figure of the labels family: small logits, and results at the image's size."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from docs.draw import style
from docs.draw.style import Page
from stripctx import functional

SIDE, FACTOR = 6, 8
COLOURS = (style.BLUE, style.ORANGE, style.GREEN)


def labels() -> Page:
    """Small logits of three classes; their label map, its probability, and a loss per pixel, all
    computed without logits at the image's size."""
    generator = torch.Generator().manual_seed(4)
    logits = 2.5 * torch.randn((1, 3, SIDE, SIDE), generator=generator)
    size = (SIDE * FACTOR, SIDE * FACTOR)
    found, chance = functional.upsample_softmax_max(logits, size, align_corners=False)
    truth = F.interpolate(logits.roll(1, 3), size, mode="bilinear").argmax(1)
    losses = functional.upsample_cross_entropy(logits, truth, align_corners=False, reduction="none")
    page = Page(1.75)
    top, side = 0.3, 1.3
    for k, colour in enumerate(COLOURS):
        axes = page.axes(0.15 + 0.62 * k, top + 0.36, 0.55, 0.55)
        axes.set_title(f"z{k}", fontsize=7.5, pad=2)
        style.picture(axes, logits[0, k].numpy(), cmap=style.ramp(colour))
    page.text(0.15, 0.02, f"logits, {SIDE} x {SIDE}", fontsize=8.5)
    maps = (
        ("upsample_argmax", found[0], style.mpl.colors.ListedColormap(COLOURS)),
        ("upsample_softmax_max", chance[0], style.ramp(style.INK)),
        ("upsample_cross_entropy", losses[0], style.ramp(style.VERMILLION)),
    )
    for index, (name, values, colours) in enumerate(maps):
        left = 2.55 + 1.85 * index
        page.arrow((2.1, top + side / 2), (2.5, top + side / 2)) if index == 0 else None
        axes = page.axes(left, top, side, side)
        axes.set_title(name, fontsize=8)
        style.picture(axes, values.numpy(), cmap=colours)
    return page
