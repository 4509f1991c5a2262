"""The figures of the encoding family: soft assignment in an image, in a plane, and the gates."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.collections import LineCollection
from torch import Tensor

import stripctx
from docs.draw import fields, style
from docs.draw.fields import MAP
from docs.draw.style import Page
from examples.street import scenes
from stripctx import functional

CODES = 6
SUBSCRIPTS = "₁₂₃₄₅₆"
LABELS = ((7, 4), (-17, -6), (7, 4))  # offsets of codeword names, in points
CHANNEL_COLOURS = (style.VERMILLION, style.GREEN, style.BLUE)  # red, green, blue
SMOOTHING = 60.0  # the negated scale, for colours from 0 to 1


def street_colours() -> Tensor:
    """(1, 3, H, W), 0 to 1: a map with three channels that can be displayed."""
    image, _ = fields.street(*MAP)
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].double() / 255


def fitted_codewords(x: Tensor) -> Tensor:
    """(CODES, 3), from twenty steps of k-means starting at colours of different brightness."""
    points = x.flatten(2)[0].T
    order = points.sum(1).argsort()
    codes = points[order[torch.linspace(0, len(order) - 1, 2 * CODES + 1).long()[1::2]]]
    for _ in range(20):
        nearest = torch.cdist(points, codes).argmin(1)
        codes = torch.stack([points[nearest == k].mean(0) for k in range(CODES)])
    return codes[codes.sum(1).argsort(descending=True)]


def assign(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """(positions, K), computed by the paper's formula."""
    points = x.flatten(2)[0].T
    return (scale * torch.cdist(points, codes) ** 2).softmax(1)


def shown(colours: Tensor) -> np.ndarray:
    """Converts to uint8 with 26 levels, for a small file."""
    return (colours * 25).round().byte().numpy() * 10


def encoding_layer() -> Page:
    """The image, its assignments to each codeword, and each codeword's weighted sum."""
    x = street_colours()
    codes = fitted_codewords(x)
    scale = torch.full((CODES,), -SMOOTHING, dtype=x.dtype)
    weights = assign(x, codes, scale)
    encoded = functional.encode(x, codes, scale)[0]
    page = Page(3.32)
    axes = page.axes(0, 0.22, 2.5, 1.25)
    style.picture(axes, shown(x[0].permute(1, 2, 0)))
    axes.set_title("x: a map of three channels")
    axes = page.axes(0, 1.95, 2.5, 1.25)
    style.picture(axes, shown((weights @ codes).reshape(*MAP, 3)))
    axes.set_title("each position as its assignments say")
    width, height = 1.5, 0.75
    for k in range(CODES):
        left, top = 2.95 + k % 3 * (width + 0.27), 0.22 + k // 3 * 1.73
        colour = tuple(float(part) for part in codes[k])
        axes = page.axes(left, top, width, height)
        shades = (weights[:, k].reshape(*MAP) * 6).round().numpy()
        style.picture(axes, shades, cmap=style.ramp(style.INK), vmin=0, vmax=6)
        style.bare(axes, frame=True)
        axes.set_title(f"codeword {k + 1}", x=0.11, weight="normal")
        swatch = page.axes(left, top - 0.16, 0.12, 0.12, facecolor=colour)
        style.bare(swatch, frame=True)
        bars = page.axes(left, top + height + 0.1, width, 0.42)
        bars.bar(
            range(3),
            encoded[k].tolist(),
            color=(style.VERMILLION, style.GREEN, style.BLUE),
            width=0.5,
        )
        bars.axhline(0, color=style.FAINT, lw=0.6)
        limit = 1.1 * float(encoded.abs().max())
        bars.set_ylim(-limit, limit)
        bars.set_xlim(-1.1, 2.6)
        style.bare(bars)
        bars.text(-1.08, limit, f"E{SUBSCRIPTS[k]}", va="top", fontsize=8)
    return page


def encode() -> Page:
    """Positions as points in a plane, D = 2: assignments, residuals, and the sums of both."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.tensor([[-1.0, 0.55], [0.95, 0.75], [0.15, -0.9]], dtype=torch.float64)
    points = torch.cat(
        [c + 0.42 * torch.randn((13, 2), generator=generator, dtype=torch.float64) for c in centres]
    )
    codes = torch.tensor([[-0.75, 0.2], [0.7, 0.45], [0.3, -0.6]], dtype=torch.float64)
    scale = torch.tensor([-2.5, -2.5, -2.5], dtype=torch.float64)
    x = points.T[None]
    weights = assign(x, codes, scale).numpy()
    encoded = functional.encode(x, codes, scale)[0].numpy()
    colours = np.array(
        [style.mpl.colors.to_rgb(c) for c in (style.BLUE, style.VERMILLION, style.GREEN)]
    )
    page = Page(2.75)
    titles = (
        "Positions, softly assigned",
        "Residuals, by assignment",
        "Their sums, a fifth as long",
    )
    for index, title in enumerate(titles):
        axes = page.axes(index * 2.75, 0.25, 2.5, 2.45)
        axes.set_title(title)
        axes.set_xlim(-2, 2)
        axes.set_ylim(-1.96, 1.96)
        style.bare(axes, frame=True)
        if index:
            axes.plot(*points.T, "o", ms=2.6, color=style.PALE, mew=0, zorder=2)
        else:
            axes.scatter(*points.T, s=22, c=weights @ colours, lw=0, zorder=3, clip_on=False)
            step = torch.linspace(-2, 2, 41, dtype=torch.float64)
            plane = torch.stack(torch.meshgrid(step, step, indexing="xy")).flatten(1)[None]
            tint = assign(plane, codes, scale).numpy().reshape(41, 41, 3).round(1) @ colours
            pale = (255 - 50 * (1 - tint)).round().astype(np.uint8)
            axes.imshow(pale, extent=(-2, 2, -2, 2), origin="lower", aspect="auto", zorder=0)
        for k, code in enumerate(codes.numpy()):
            if index == 1:
                ends = code + weights[:, k, None] * (points.numpy() - code)
                lines = [(code, end) for end in ends if np.hypot(*(end - code)) > 0.03]
                axes.add_collection(LineCollection(lines, colors=[colours[k]], lw=0.8))
            if index == 2:
                axes.annotate(
                    "", code + encoded[k] / 5, code,
                    arrowprops={"arrowstyle": "-|>", "color": colours[k], "lw": 1.8, "shrinkA": 0},
                )  # fmt: skip
            axes.plot(*code, "s", ms=6.5, mfc=colours[k], mec="white", mew=1, zorder=4)
            axes.annotate(
                f"c{SUBSCRIPTS[k]}", code, LABELS[k], textcoords="offset points", color=colours[k],
                fontsize=10, zorder=5,
            )  # fmt: skip
    return page


def context_encoding() -> Page:
    """The receptive field of one output; and the gates, which do not depend on positions."""
    classes = len(scenes.CLASSES)
    layer = fields.fresh(lambda: stripctx.ContextEncoding(24, classes))
    _, labels = fields.street(*MAP)
    shuffled = labels.flatten()[
        torch.randperm(labels.size, generator=torch.Generator().manual_seed(0))
    ]
    shuffled = shuffled.reshape(MAP)
    page = Page(1.65)
    axes = page.axes(0, 0.22, 2.5, 1.25)
    fields.overlay(axes, fields.context_encoding())
    axes.set_title("One output depends on all positions")
    pictures = np.stack([labels, shuffled])
    for index, picture in enumerate(pictures):
        axes = page.axes(2.75, 0.22 + index * 0.66, 1.18, 0.59)
        style.picture(axes, fields.class_colours()[picture])
        if not index:
            axes.set_title("A map, and shuffled")
    features = torch.randn((classes, 24), generator=torch.Generator().manual_seed(4))
    found: list[Tensor] = []
    layer.gate.register_forward_hook(lambda *call: found.append(call[2].sigmoid()))
    layer.train()(features[torch.from_numpy(pictures).long()].permute(0, 3, 1, 2))
    gates = found[0].detach().numpy()
    axes = page.axes(4.6, 0.22, 3.3, 1.25)
    axes.bar(range(24), gates[0], color=style.light(style.BLUE, 0.35), width=0.7, label="map")
    axes.plot(range(24), gates[1], "o", ms=3, color=style.VERMILLION, label="shuffled")
    axes.set_ylim(0, 1)
    axes.set_yticks((0, 0.5, 1))
    axes.set_xticks([])
    axes.set_xlabel("channel", fontsize=7.5, labelpad=2)
    axes.set_title("The gate of each channel: the same for both")
    return page
