"""The measured receptive field of an output position of a layer: the magnitude of the derivative of
that output with respect to every position of the input, with initial parameters and noise as input,
so that it shows the layer's structure and not the result of a training."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

import stripctx
from docs.draw import style
from examples.street import scenes

Function = Callable[[Tensor], Tensor]

MAP = (36, 72)  # rows and columns of the maps
CHANNELS = 48
STREET = 5  # the seed of the scene
POSITION = (15, 20)  # of the output
PROBES = 12
SHADES = 24


def fresh(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def noise(channels: int = CHANNELS) -> Tensor:
    return torch.randn((1, channels, *MAP), generator=torch.Generator().manual_seed(1))


def sensitivity(function: Function, x: Tensor, row: int, column: int) -> np.ndarray:
    """(H, W): the root mean square, over the channels of input and output, of the derivative of
    the output at (row, column) with respect to x."""
    x = x.clone().requires_grad_()
    output = function(x)[0, :, row, column]
    generator = torch.Generator().manual_seed(2)
    total = torch.zeros(x.shape[2:])
    for _ in range(PROBES):
        probe = torch.randn(output.shape, generator=generator)
        (grad,) = torch.autograd.grad(output, x, probe, retain_graph=True)
        total += grad[0].square().sum(0)
    return (total / total.max()).sqrt().numpy()


@cache
def street(height: int, width: int, seed: int = STREET) -> tuple[np.ndarray, np.ndarray]:
    """A generated scene at this size: uint8 image (H, W, 3), labels (H, W)."""
    return scenes.scene(seed, height, width)


def class_colours() -> np.ndarray:
    return np.array([each.colour for each in scenes.CLASSES], np.uint8)


@cache
def classes_by_row(streets: int) -> np.ndarray:
    """(H, classes): the frequency of each class in each row of generated scenes."""
    _, labels = zip(*(street(64, 128, seed) for seed in range(streets)), strict=True)
    stacked = np.stack(labels).transpose(1, 0, 2).reshape(64, -1)
    return (stacked[..., None] == np.arange(len(scenes.CLASSES))).mean(1)


def backdrop(axes: Axes, fade: float = 0.72) -> None:
    """Draws the scene's class colours faintly behind a map."""
    _, labels = street(3 * MAP[0], 3 * MAP[1])
    colours = class_colours() * (1 - fade) + 255 * fade
    extent = (-0.5, MAP[1] - 0.5, MAP[0] - 0.5, -0.5)
    style.picture(axes, colours.astype(np.uint8)[labels], extent=extent)


def overlay(axes: Axes, field: np.ndarray, position: tuple[int, int] = POSITION) -> None:
    """Draws the scene, and over it the influence of each position as opacity, relative to the
    largest other than at the position itself."""
    backdrop(axes)
    others = field.copy()
    others[position] = 0
    strength = np.clip(field / others.max(), 0, 1) ** 0.5
    layer = np.zeros((*field.shape, 4), np.uint8)
    layer[..., :3] = [round(255 * part) for part in style.mpl.colors.to_rgb(style.BLUE)]
    layer[..., 3] = np.round(strength * SHADES) * (225 // SHADES)
    axes.imshow(layer, interpolation="none", aspect="auto")
    style.mark(axes, *position)


def strip_pooling() -> np.ndarray:
    layer = fresh(lambda: stripctx.StripPooling(CHANNELS))
    return sensitivity(layer, noise(), *POSITION)


def mixed_pooling(arms: str) -> np.ndarray:
    """Uses grids that suit a small map; branches have a quarter of the channels."""
    layer = fresh(lambda: stripctx.MixedPooling(3 * CHANNELS, (12, 6), arms=arms))
    return sensitivity(layer, noise(3 * CHANNELS), *POSITION)


def pyramid_pooling(bins: tuple[int, ...]) -> np.ndarray:
    """The channels of the branches only; those of x are the identity."""
    layer = fresh(lambda: stripctx.PyramidPooling(CHANNELS, bins, branch_channels=16))
    return sensitivity(lambda x: layer(x)[:, CHANNELS:], noise(), *POSITION)


def height_attention() -> np.ndarray:
    layer = fresh(lambda: stripctx.HeightAttention(CHANNELS, CHANNELS, reduction=2))
    out = torch.ones_like(noise())
    return sensitivity(lambda x: layer(x, out), noise(), *POSITION)


def context_encoding() -> np.ndarray:
    layer = fresh(lambda: stripctx.ContextEncoding(CHANNELS, len(scenes.CLASSES)))
    return sensitivity(lambda x: layer(x)[0], noise(), *POSITION)
