"""Runs a network on a whole image by a protocol of protocols.py, within bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.data.augment import HEIGHTS, Augmentation, heights, normalise, to_tensor
from examples.protocols import Protocol, WholeImage, Windows
from examples.training.networks import may_resize, takes_heights
from stripctx import functional


@dataclass(frozen=True)
class View:
    """How a network is applied to an image as read from a file.

    settings: normalisation of the images, as in training. precision: autocast's dtype, by name.
    batch, store: arguments of `infer`.
    """

    settings: Augmentation
    protocol: Protocol = WholeImage()  # noqa: RUF009
    precision: str = "float32"
    batch: int = 4
    store: str | None = None

    def classes(self, network: nn.Module, image: np.ndarray) -> Tensor:
        """The class of every pixel of an image uint8 (H, W, 3): int64 (H, W), on the network's
        device."""
        device, dtype = next(network.parameters()).device, getattr(torch, self.precision)
        seen = normalise(to_tensor(image), self.settings).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            if may_resize(network) and _is_one_view(self.protocol, seen):
                return _at_once(network, seen)
            scores = infer(network, seen, self.protocol, batch=self.batch, store=self.store)
        return scores.argmax(0).to(device)


def _is_one_view(protocol: Protocol, image: Tensor) -> bool:
    """Whether the protocol runs the network once on the unchanged image, so that the largest logit
    gives the largest score. Scores of several views are averaged at the size of the image."""
    height, width = image.shape[1:]
    if protocol.flip or protocol.scales != (1.0,):
        return False
    if protocol.size(height, width, 1.0) != (height, width):
        return False
    return protocol.windows(height, width, 1.0) == Windows(height, width, ((0, 0),))


@torch.no_grad()
def _at_once(network: nn.Module, image: Tensor) -> Tensor:
    """The label map of a whole image, from logits at the size of the network's head."""
    inputs = [image[None]]
    if takes_heights(network):
        inputs.append(heights(image.shape[1], 1)[:, 0][None].to(image.device))
    outputs = network(*inputs, resize=False)
    logits = outputs if isinstance(outputs, Tensor) else outputs["out"]
    corners = bool(network.align_corners)
    return functional.upsample_argmax(logits, image.shape[1:], align_corners=corners)[0]


@torch.no_grad()
def infer(
    network: nn.Module,
    image: Tensor,
    protocol: Protocol,
    *,
    batch: int = 4,
    store: torch.device | str | None = None,
) -> Tensor:
    """The scores of every class at every pixel.

    Memory: one map of scores at the image's size and one or two at the size of the current scale,
    K * H * W numbers each, float64 under `EncodingSliding`. `batch` limits the network's input.

    Args:
        network: in eval mode; (N, 3, h, w) to logits (N, K, h, w), or to a dictionary with them as
            `out`. If its forward takes `pos`, it receives the heights of the rows, (N, h).
        image: (3, H, W), normalised, on the network's device.
        protocol: the windows and scales.
        batch: the maximum number of windows per call of the network, including mirrored ones.
        store: the device that holds the scores, "cpu" for large images; by default the image's.

    Returns:
        (K, H, W) on `store`; the argmax over K is the label map.

    Example:
        >>> network = models.create("fcn", num_classes=19, backbone="resnet18").eval()
        >>> image = torch.randn(3, 96, 160)
        >>> infer(network, image, SemsegSliding(crop=64, flip=True)).argmax(0).shape
        torch.Size([96, 160])
    """
    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"infer: image must have shape (3, H, W), got {tuple(image.shape)}")
    if network.training:
        raise ValueError("infer: network must be in eval mode, got one in training")
    height, width = image.shape[1:]
    corners = protocol.align_corners
    place = torch.device(store or image.device)
    total = torch.zeros(())
    for scale in protocol.scales:
        size = protocol.size(height, width, scale)
        seen = _resized(image, size, corners, protocol.antialias)
        if protocol.flip and protocol.mirrors == "image":
            once = replace(protocol, flip=False)
            scores = _slide(network, seen, scale, once, batch, place)
            mirrored = _slide(network, seen.flip(2), scale, once, batch, place)
            scores = scores.add_(mirrored.flip(2)).div_(2)
        else:
            scores = _slide(network, seen, scale, protocol, batch, place)
        scores = _resized(scores, (height, width), corners, False)
        total = scores if total.dim() == 0 else total.add_(scores)
    return total.div_(len(protocol.scales))


def _slide(
    network: nn.Module,
    image: Tensor,
    scale: float,
    protocol: Protocol,
    batch: int,
    store: torch.device,
) -> Tensor:
    """(K, h, w): the mean score over the windows that contain a pixel."""
    height, width = image.shape[1:]
    windows = protocol.windows(height, width, scale)
    views = torch.zeros(height, width, device=store)
    total = torch.zeros(())
    step = max(1, batch // 2 if protocol.flip else batch)
    for start in range(0, len(windows.corners), step):
        corners = windows.corners[start : start + step]
        scores = _look(network, image, windows, corners, protocol).to(store)
        if total.dim() == 0:
            total = scores.new_zeros(scores.shape[1], height, width)
        for score, corner in zip(scores, corners, strict=True):
            in_image, in_window = windows.shared(corner, height, width)
            total[in_image] += score[in_window]
            views[in_image[1:]] += 1
    return total.div_(views)


def _look(
    network: nn.Module,
    image: Tensor,
    windows: Windows,
    corners: tuple[tuple[int, int], ...],
    protocol: Protocol,
) -> Tensor:
    """(N, K, h, w): the scores of a batch of windows."""
    crops = torch.stack([_crop(image, windows, corner, protocol.padding) for corner in corners])
    if protocol.flip:
        crops = torch.cat([crops, crops.flip(3)])
    if takes_heights(network):
        rows = torch.stack([_heights(windows, top, image.shape[1]) for top, _ in corners])
        outputs = network(crops, rows.repeat(len(crops) // len(rows), 1).to(crops.device))
    else:
        outputs = network(crops)
    logits = outputs if isinstance(outputs, Tensor) else outputs["out"]
    logits = logits if logits.dtype is torch.float64 else logits.float()
    straight, mirrored = logits[: len(corners)], logits[len(corners) :]
    return protocol.score(straight, mirrored.flip(3) if protocol.flip else None)


def _crop(
    image: Tensor,
    windows: Windows,
    corner: tuple[int, int],
    padding: tuple[float, float, float],
) -> Tensor:
    """(3, h, w): the pixels of a window, padded."""
    crop = image.new_tensor(padding)[:, None, None].repeat(1, windows.height, windows.width)
    in_image, in_window = windows.shared(corner, *image.shape[1:])
    crop[in_window] = image[in_image]
    return crop


def _heights(windows: Windows, top: int, height: int) -> Tensor:
    """(h,): the height in the image of each row of a window; HEIGHTS for padding."""
    above, below = max(-top, 0), max(top + windows.height - height, 0)
    rows = F.pad(heights(height, 1)[:, 0], (above, below), value=HEIGHTS)
    return rows[top + above :][: windows.height]


def _resized(x: Tensor, size: tuple[int, int], align_corners: bool, antialias: bool) -> Tensor:
    """Resizes a map (C, h, w)."""
    if tuple(x.shape[1:]) == size:
        return x
    return F.interpolate(
        x[None], size, mode="bilinear", align_corners=align_corners, antialias=antialias
    )[0]
