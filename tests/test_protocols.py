"""The testing protocols against their authors' loops, pixel by pixel in float64.

The network in these tests depends on the position of a pixel in the window and distinguishes left
from right, so that misplaced windows, unflipped mirror images and wrong padding are detected.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from examples import inference, protocols  # noqa: E402
from examples.data.augment import Augmentation, normalise, to_tensor  # noqa: E402
from examples.inference import View, infer  # noqa: E402
from stripctx import models  # noqa: E402

CLASSES = 4
IMAGES = [(23, 37), (37, 23), (9, 11), (40, 40)]
SCALES = (0.5, 1.0, 1.75)


class Where(nn.Module):
    """Logits that depend on the colours around a pixel and its position in the window."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, CLASSES, 3, padding=1)
        self.windows: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.windows.append(tuple(x.shape))
        rows = torch.linspace(-1, 1, x.shape[2], dtype=x.dtype)[:, None]
        cols = torch.linspace(-1, 2, x.shape[3], dtype=x.dtype) ** 2
        place = torch.stack([rows * cols, rows + cols, rows - cols, 0 * rows * cols])
        return {"out": self.convolution(x) + place}


@pytest.fixture
def network() -> Where:
    return Where().double().eval()


def picture(height: int, width: int) -> Tensor:
    return torch.randn(3, height, width, dtype=torch.float64)


def resized(x: np.ndarray, height: int, width: int, align_corners: bool) -> np.ndarray:
    """Bilinear interpolation, pixel by pixel: (C, h, w) to (C, height, width)."""
    out = np.empty((x.shape[0], height, width))
    for i in range(height):
        for j in range(width):
            weights = []
            for at, size, old in ((i, height, x.shape[1]), (j, width, x.shape[2])):
                if align_corners:
                    source = at * (old - 1) / (size - 1) if size > 1 else 0.0
                else:
                    source = min(max((at + 0.5) * old / size - 0.5, 0.0), old - 1.0)
                low = min(int(source), old - 1)
                weights.append((low, min(low + 1, old - 1), source - low))
            (top, bottom, down), (left, right, across) = weights
            upper = x[:, top, left] * (1 - across) + x[:, top, right] * across
            lower = x[:, bottom, left] * (1 - across) + x[:, bottom, right] * across
            out[:, i, j] = upper * (1 - down) + lower * down
    return out


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


def asked(network: nn.Module, crop: np.ndarray, flip: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """The logits of a crop, and those of its mirror image, flipped back."""

    def ask(x: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(x.copy())[None])["out"][0].detach().numpy()

    return ask(crop), ask(crop[:, :, ::-1])[:, :, ::-1] if flip else None


def mean_softmax(straight: np.ndarray, mirrored: np.ndarray | None) -> np.ndarray:
    if mirrored is None:
        return softmax(straight)
    return (softmax(straight) + softmax(mirrored)) / 2


def semseg(
    network: nn.Module,
    image: np.ndarray,
    base: int,
    crop: int,
    scales: tuple[float, ...],
    flip: bool,
) -> np.ndarray:
    """tool/test.py: scale_process and its caller."""
    h, w = image.shape[1:]
    total = np.zeros((CLASSES, h, w))
    for scale in scales:
        long_size = round(scale * base)
        new_h = new_w = long_size
        if h > w:
            new_w = round(long_size / float(h) * w)
        else:
            new_h = round(long_size / float(w) * h)
        small = resized(image, new_h, new_w, False)
        pad_h, pad_w = max(crop - new_h, 0), max(crop - new_w, 0)
        half_h, half_w = int(pad_h / 2), int(pad_w / 2)
        padded = np.zeros((3, new_h + pad_h, new_w + pad_w))
        padded[:, half_h : half_h + new_h, half_w : half_w + new_w] = small
        ph, pw = padded.shape[1:]
        stride = int(np.ceil(crop * 2 / 3))
        grid_h = int(np.ceil(float(ph - crop) / stride) + 1)
        grid_w = int(np.ceil(float(pw - crop) / stride) + 1)
        scores, count = np.zeros((CLASSES, ph, pw)), np.zeros((ph, pw))
        for index_h in range(grid_h):
            for index_w in range(grid_w):
                e_h = min(index_h * stride + crop, ph)
                e_w = min(index_w * stride + crop, pw)
                s_h, s_w = e_h - crop, e_w - crop
                count[s_h:e_h, s_w:e_w] += 1
                logits = asked(network, padded[:, s_h:e_h, s_w:e_w], flip)
                scores[:, s_h:e_h, s_w:e_w] += mean_softmax(*logits)
        scores = (scores / count)[:, half_h : half_h + new_h, half_w : half_w + new_w]
        total += resized(scores, h, w, False)
    return total / len(scales)


def encoding(
    network: nn.Module,
    image: np.ndarray,
    base: int,
    crop: int,
    scales: tuple[float, ...],
    flip: bool,
) -> np.ndarray:
    """encoding/models/sseg/base.py: MultiEvalModule, with scores summed over the scales."""
    h, w = image.shape[1:]
    stride = int(crop * (2.0 / 3.0))
    black = np.array(protocols.BLACK)[:, None, None]

    def pad(x: np.ndarray) -> np.ndarray:
        out = np.broadcast_to(black, (3, max(crop, x.shape[1]), max(crop, x.shape[2]))).copy()
        out[:, : x.shape[1], : x.shape[2]] = x
        return out

    def ask(x: np.ndarray) -> np.ndarray:
        straight, mirrored = asked(network, x, flip)
        return np.exp(straight if mirrored is None else straight + mirrored)

    total = np.zeros((CLASSES, h, w))
    for scale in scales:
        long_size = math.ceil(base * scale)
        if h > w:
            height, width = long_size, int(1.0 * w * long_size / h + 0.5)
            short_size = width
        else:
            width, height = long_size, int(1.0 * h * long_size / w + 0.5)
            short_size = height
        small = resized(image, height, width, True)
        if long_size <= crop:
            outputs = ask(pad(small))[:, :height, :width]
        else:
            padded = pad(small) if short_size < crop else small
            ph, pw = padded.shape[1:]
            outputs, count = np.zeros((CLASSES, ph, pw)), np.zeros((ph, pw))
            for idh in range(math.ceil(1.0 * (ph - crop) / stride) + 1):
                for idw in range(math.ceil(1.0 * (pw - crop) / stride) + 1):
                    h0, w0 = idh * stride, idw * stride
                    h1, w1 = min(h0 + crop, ph), min(w0 + crop, pw)
                    found = ask(pad(padded[:, h0:h1, w0:w1]))
                    outputs[:, h0:h1, w0:w1] += found[:, : h1 - h0, : w1 - w0]
                    count[h0:h1, w0:w1] += 1
            outputs = (outputs / count)[:, :height, :width]
        total += resized(outputs, h, w, True)
    return total


def hanet(
    network: nn.Module, image: np.ndarray, crop: int, scales: tuple[float, ...], flip: bool
) -> np.ndarray:
    """eval.py: sliding windows over every scale and flip, with logits averaged."""
    h, w = image.shape[1:]
    total = np.zeros((CLASSES, h, w))
    for scale in scales:
        height, width = int(h * scale), int(w * scale)
        small = F.interpolate(
            torch.from_numpy(image)[None], (height, width), mode="bilinear", antialias=True
        )[0].numpy()
        tile = int(crop * max(1.0, scale))
        stride = math.ceil(tile * (1 - 1 / 3))
        for mirrored in (False, True)[: 1 + flip]:
            seen = small[:, :, ::-1] if mirrored else small
            scores, count = np.zeros((CLASSES, height, width)), np.zeros((height, width))
            for row in range(max(0, math.ceil((height - tile) / stride)) + 1):
                for col in range(max(0, math.ceil((width - tile) / stride)) + 1):
                    y2, x2 = min(row * stride + tile, height), min(col * stride + tile, width)
                    y1, x1 = max(y2 - tile, 0), max(x2 - tile, 0)
                    scores[:, y1:y2, x1:x2] += asked(network, seen[:, y1:y2, x1:x2], False)[0]
                    count[y1:y2, x1:x2] += 1
            scores = scores / count
            scores = scores[:, :, ::-1] if mirrored else scores
            total += resized(scores, h, w, False) / (1 + flip)
    return total / len(scales)


def close(ours: Tensor, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", IMAGES)
def test_semseg_equals_its_authors_loop(network: Where, size: tuple[int, int], flip: bool) -> None:
    image = picture(*size)
    ours = infer(network, image, protocols.SemsegSliding(SCALES, flip, base_size=29, crop=16))
    close(ours, semseg(network, image.numpy(), 29, 16, SCALES, flip))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", IMAGES)
def test_encoding_equals_its_authors_loop(
    network: Where, size: tuple[int, int], flip: bool
) -> None:
    image = picture(*size)
    ours = infer(network, image, protocols.EncodingSliding(SCALES, flip, base_size=29, crop=16))
    close(ours * len(SCALES), encoding(network, image.numpy(), 29, 16, SCALES, flip))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", IMAGES)
def test_hanet_equals_its_authors_loop(network: Where, size: tuple[int, int], flip: bool) -> None:
    image = picture(*size)
    ours = infer(network, image, protocols.HanetSliding(SCALES, flip, crop=16))
    theirs = hanet(network, image.numpy(), 16, SCALES, flip)
    close(ours, theirs)


@pytest.mark.parametrize("flip", [False, True])
def test_whole_image(network: Where, flip: bool) -> None:
    image = picture(21, 30)
    ours = infer(network, image, protocols.WholeImage((0.5, 1.0), flip))
    expected = np.zeros((CLASSES, 21, 30))
    for height, width in ((10, 15), (21, 30)):
        seen = resized(image.numpy(), height, width, False)
        expected += resized(mean_softmax(*asked(network, seen, flip)), 21, 30, False) / 2
    close(ours, expected)


# inference.infer.


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_batch_does_not_change_scores(network: Where, name: str, batch: int) -> None:
    image = picture(40, 27)
    crop = {} if name == "whole" else {"crop": 16}
    protocol = protocols.create(name, scales=(0.75, 1.0), flip=True, **crop)
    expected = infer(network, image, protocol, batch=2)
    network.windows.clear()
    torch.testing.assert_close(infer(network, image, protocol, batch=batch, store="cpu"), expected)
    assert max(shape[0] for shape in network.windows) <= max(2, batch)


def test_float32_scores_of_half_networks() -> None:
    network = Where().bfloat16().eval()
    image = torch.randn(3, 12, 14, dtype=torch.bfloat16)
    scores = infer(network, image, protocols.WholeImage())
    assert scores.dtype is torch.float32
    torch.testing.assert_close(scores.sum(0), torch.ones(12, 14))


@pytest.mark.parametrize("sum_of_logits", [80.0, 2000.0])
def test_encoding_does_not_overflow(sum_of_logits: float) -> None:
    """Upstream's float32 exp overflows above 88, so the first class with infinity wins."""

    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            classes = x.new_tensor([0.5, 1.0, 0.99]) * (sum_of_logits / 2)
            return classes[:, None, None].expand(x.shape[0], 3, *x.shape[2:])

    protocol = protocols.EncodingSliding((1.0, 1.5), True, crop=8)
    scores = infer(Sure().eval(), picture(12, 14), protocol)
    assert scores.isfinite().all()
    assert (scores.argmax(0) == 1).all()
    ratio = scores[2] / scores[1]
    torch.testing.assert_close(ratio, torch.full_like(ratio, math.exp(-0.01 * sum_of_logits)))


class Heights(nn.Module):
    """Returns the heights it receives as logits."""

    def forward(self, x: Tensor, pos: Tensor | None = None) -> Tensor:
        assert pos is not None and pos.shape == (x.shape[0], x.shape[2])
        return pos[:, None, :, None].expand(-1, 2, -1, x.shape[3]).to(x)


def test_networks_receive_heights_in_the_whole_image() -> None:
    image = torch.randn(3, 256, 60)
    heights = infer(Heights().eval(), image, protocols.HanetSliding(flip=True, crop=96))
    expected = (torch.arange(256) // 2).float()[None, :, None].expand(2, -1, 60)
    torch.testing.assert_close(heights, expected)


def test_padding_is_marked_in_the_heights() -> None:
    told = []

    class Listens(Heights):
        def forward(self, x: Tensor, pos: Tensor | None = None) -> Tensor:
            told.append(pos)
            return super().forward(x, pos)

    infer(Listens().eval(), torch.randn(3, 4, 10), protocols.SemsegSliding(crop=10))
    assert told[0].tolist() == [[128] * 3 + [0, 32, 64, 96] + [128] * 3]


def test_a_real_network_with_heights() -> None:
    network = models.create("deeplabv3plus_hanet", num_classes=3, backbone="resnet18").eval()
    image = torch.randn(3, 40, 56)
    with torch.no_grad():
        rows = (torch.arange(40) * 128 // 40)[None]
        expected = network(image[None], rows)["out"][0].softmax(0)
    torch.testing.assert_close(infer(network, image, protocols.WholeImage()), expected)


def test_unsupported_options_are_refused(network: Where) -> None:
    with pytest.raises(ValueError, match=r"\(3, H, W\), got \(1, 3, 8, 8\)"):
        infer(network, torch.zeros(1, 3, 8, 8), protocols.WholeImage())
    with pytest.raises(ValueError, match="must be in eval mode"):
        infer(network.train(), torch.zeros(3, 8, 8), protocols.WholeImage())


# Protocols by name.


def test_none_keeps_an_options_default() -> None:
    made = protocols.create("semseg", crop=480, scales=None, flip=True)
    assert made == protocols.SemsegSliding(flip=True, crop=480)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sliding", {}, "one of whole, semseg, hanet, encoding, got 'sliding'"),
        ("whole", {"crop": 4}, "'whole' takes flip, padding, scales, got crop"),
        ("semseg", {"crop": 0}, "crop must be positive, got 0"),
        ("encoding", {"base_size": -1}, "base_size must be positive, got -1"),
        ("whole", {"scales": ()}, r"scales must be positive, got \(\)"),
        ("hanet", {"scales": (1.0, 0.0)}, r"scales must be positive, got \(1.0, 0.0\)"),
        ("hanet", {"overlap": 1.0}, r"overlap must be in \[0, 1\), got 1.0"),
    ],
)
def test_invalid_protocols(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        protocols.create(name, **options)


@pytest.mark.parametrize("name", ["fcn", "deeplabv3plus_hanet"])
def test_label_maps_without_scores(name: str) -> None:
    """Label maps of whole images equal the argmax of scores, without logits at the image's size."""
    torch.manual_seed(0)
    network = models.create(name, num_classes=5, backbone="resnet18", aux=False).eval()
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    seen = normalise(to_tensor(image), Augmentation())
    whole, sliding = protocols.WholeImage(), protocols.SemsegSliding(crop=64)
    for protocol, wide in (
        (whole, False),
        (sliding, True),
        (protocols.WholeImage(flip=True), True),
    ):
        labels = View(Augmentation(), protocol).classes(network, image)
        scores = infer(network, seen, protocol)
        assert labels.shape == (70, 90) and (labels == scores.argmax(0)).float().mean() > 0.999
        assert inference._is_one_view(protocol, seen) != wide
    square = torch.zeros(3, 64, 64)  # one window that is the image
    assert inference._is_one_view(sliding, square)
