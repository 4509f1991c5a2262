"""The demo's network, its training data, and the loop that fits it for a number of seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn

from stripctx import StripPooling

STRIDE = 4


class Segmenter(nn.Module):
    """A few convolutions to features at a quarter of the size, strip pooling, a classifier.

    Args:
        num_classes: K.
        channels: C, of strip pooling's input.

    Shape:
        (N, 3, H, W) to (N, K, H, W); H and W divisible by 4.
    """

    def __init__(self, num_classes: int, channels: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _convolution(3, channels // 2, stride=2),
            _convolution(channels // 2, channels, stride=2),
            _convolution(channels, channels),
        )
        self.context = StripPooling(channels)
        self.head = nn.Sequential(
            _convolution(channels, channels),
            nn.Conv2d(channels, 4 * num_classes, 1),
            nn.PixelShuffle(2),  # twice the resolution, for thin objects
            nn.UpsamplingBilinear2d(scale_factor=2),
        )

        with torch.no_grad():  # the four subpixels start with equal weights: no checkerboard
            wide: Any = self.head[1]
            for parameter in (wide.weight, wide.bias):
                parameter.copy_(parameter[::4].repeat_interleave(4, 0))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.context(self.stem(image)))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) to float (1, 3, H, W) around 0."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float().div(127.5).sub(1)


@dataclass
class Step:
    """The state of the fit after a step."""

    elapsed: float  # seconds
    loss: float
    accuracy: float  # fraction of correct pixels


def fit(network: Segmenter, image: Tensor, labels: Tensor, *, seconds: float) -> Iterator[Step]:
    """Fits the network to one image for `seconds`, at least one step.

    Args:
        image: (1, 3, H, W).
        labels: (1, H, W), int64.
    """
    rate = 5e-3
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-3)
    counts = torch.bincount(labels.flatten()).float()
    weight = torch.where(counts > 0, (counts / counts.sum()).clamp_min(1e-4).pow(-0.3), 0)
    network.train()
    start, elapsed = time.monotonic(), 0.0
    while True:
        for group in optimizer.param_groups:
            group["lr"] = rate * max(0.02, 1 - elapsed / seconds)
        logits = network(image)
        loss = F.cross_entropy(logits, labels, weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        elapsed = time.monotonic() - start
        yield Step(elapsed, loss.item(), accuracy.item())
        if elapsed >= seconds:
            break
    _settle(network, image)


@torch.no_grad()
def _settle(network: Segmenter, image: Tensor) -> None:
    """Recomputes the norms' statistics: after a short fit the running means lag behind."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # use the next batch's statistics only
    network(image)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    network.eval()


def clusters(image: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Pseudo-labels for an image without labels: k-means over colour and position.

    Args:
        image: uint8 (H, W, 3).
        count: the number of clusters.

    Returns:
        uint8 (H, W), clusters numbered from the top of the image to the bottom.
    """
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(image).filter(ImageFilter.GaussianBlur(2)).convert("YCbCr")
    height, width = image.shape[:2]
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    place = np.stack([0.7 * y, 0.25 * x], axis=-1)
    points = np.concatenate([np.asarray(smooth) / 255 * [1, 3, 3], place], axis=-1).reshape(-1, 5)
    sample = points[rng.choice(len(points), min(len(points), 8000), replace=False)]
    centres = sample[rng.choice(len(sample), count, replace=False)]
    for _ in range(15):
        nearest = _nearest(sample, centres)
        members = [sample[nearest == index] for index in range(count)]
        means = [m.mean(0) if len(m) else c for m, c in zip(members, centres, strict=True)]
        centres = np.stack(means)
    centres = centres[np.argsort(centres[:, 3])]
    return _nearest(points, centres).reshape(height, width).astype(np.uint8)


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return ((points[:, None] - centres) ** 2).sum(-1).argmin(1)
