"""The demo's two context layers in plain PyTorch, using a layer's parameters, for comparison."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import stripctx


def strip_pooling(layer: stripctx.StripPooling, x: Tensor) -> Tensor:
    rows = layer.bn1(layer.conv1(x.mean(3, keepdim=True)))
    cols = layer.bn2(layer.conv2(x.mean(2, keepdim=True)))
    return x * layer.conv3((rows + cols).relu_()).sigmoid_()


def pyramid_pooling_conv(layer: stripctx.PyramidPoolingConv, x: Tensor) -> Tensor:
    """Computes a layer with the demo's options: means, and x first in the concatenation."""
    maps = [x]
    for bins, branch in zip(layer.bins, layer.branches, strict=True):
        level = branch(F.adaptive_avg_pool2d(x, bins))
        maps.append(
            F.interpolate(level, x.shape[2:], mode="bilinear", align_corners=layer.align_corners)
        )
    return layer.conv(torch.cat(maps, 1))


@contextmanager
def instead() -> Iterator[None]:
    """Within this context, every PyramidPoolingConv computes in plain PyTorch."""
    fused = stripctx.PyramidPoolingConv.forward
    layer: Any = stripctx.PyramidPoolingConv
    layer.forward = pyramid_pooling_conv
    try:
        yield
    finally:
        layer.forward = fused
