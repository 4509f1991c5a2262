"""Augmentation keeps image, labels and heights aligned, and is reproducible."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from examples.data.augment import (  # noqa: E402
    HEIGHTS,
    Augmentation,
    Augmented,
    Key,
    augment,
    heights,
    normalise,
    to_tensor,
)
from examples.data.labels import IGNORE  # noqa: E402
from examples.data.pairs import Scene  # noqa: E402

BLOCK = 5  # side in pixels of a square with one label


def chart(height: int, width: int) -> Scene:
    """A scene whose red and green encode a pixel's row and column; blue is 255, so that mixing with
    the padding is visible. Labels are a chessboard of 16 labels."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([y * 2, x * 2, np.full_like(x, 255)], -1).astype(np.uint8)
    return Scene(image, label_at(y, x).astype(np.uint8), "chart")


def label_at(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (y // BLOCK) % 4 * 4 + (x // BLOCK) % 4


def colours(image: torch.Tensor, options: Augmentation) -> np.ndarray:
    """The input of `normalise`, as (3, H, W) from 0 to 255."""
    mean, std = (np.array(v)[:, None, None] for v in (options.mean, options.std))
    return (image.numpy() * std + mean) * 255


varied = st.builds(
    Augmentation,
    crop=st.lists(st.integers(8, 90), min_size=2, max_size=2),
    scale=st.tuples(st.floats(0.5, 1), st.floats(1, 2)).map(list),
    long_side=st.sampled_from([0, 0, 70]),
    rotation=st.sampled_from([0.0, 10.0, 45.0]),
    rotation_chance=st.just(0.7),
    padding=st.sampled_from(["mean", "black"]),
    padded=st.sampled_from(["around", "after"]),
)
sizes = st.tuples(st.integers(20, 90), st.integers(20, 90))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(varied, sizes, st.integers(0, 10_000), st.booleans())
def test_image_labels_and_heights_stay_aligned(
    options: Augmentation, size: tuple[int, int], seed: int, centred: bool
) -> None:
    scene = chart(*size)
    centre = (seed % size[0], seed % size[1]) if centred else None
    result = augment(scene, options, np.random.default_rng(seed), centre)
    crop = tuple(options.crop)
    assert result.image.shape == (3, *crop) and result.image.dtype == torch.float32
    assert result.labels.shape == crop and result.labels.dtype == torch.int64
    assert result.heights.shape == crop and result.heights.dtype == torch.uint8
    labels, positions = result.labels.numpy(), result.heights.numpy()
    inside = labels != IGNORE
    np.testing.assert_array_equal(inside, positions != HEIGHTS)
    # A pixel's colour tells its source position; at the edges it is mixed with the padding.
    interior = inside & np.isclose(colours(result.image, options)[2], 255, atol=0.3)
    y, x = colours(result.image, options)[:2] / 2
    interior &= (y > 1) & (y < size[0] - 2) & (x > 1) & (x < size[1] - 2)
    rows, columns = np.round(y).astype(int), np.round(x).astype(int)
    near = [  # the nearest pixel or its neighbours, depending on rounding
        (labels == label_at(rows + dy, columns + dx))
        & (positions == (rows + dy) * HEIGHTS // size[0])
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    assert np.any(near, axis=0)[interior].all()
    clear = (np.abs(y - rows) < 0.4) & (np.abs(x - columns) < 0.4) & interior
    assert near[4][clear].all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(sizes, st.booleans(), st.integers(0, 99))
def test_flip_and_crop_alone_copy_pixels(size: tuple[int, int], flip: bool, seed: int) -> None:
    """Without scale or rotation nothing is resampled, up to rounding."""
    crop = [min(size[0], 20), min(size[1], 20)]
    options = Augmentation(crop=crop, flip_chance=float(flip))
    scene = chart(*size)
    result = augment(scene, options, np.random.default_rng(seed))
    pixels = np.rint(colours(result.image, options)).astype(int)
    assert np.abs(pixels - colours(result.image, options)).max() < 0.02
    y, x = pixels[0, 0, 0] // 2, pixels[1, 0].min() // 2
    expected = scene.image[y : y + crop[0], x : x + crop[1]]
    labels = scene.labels[y : y + crop[0], x : x + crop[1]]
    if flip:
        expected, labels = expected[:, ::-1], labels[:, ::-1]
    np.testing.assert_array_equal(pixels.transpose(1, 2, 0), expected)
    np.testing.assert_array_equal(result.labels, labels)


@pytest.mark.parametrize("padded", ["around", "after"])
@pytest.mark.parametrize("padding", ["mean", "black"])
def test_padding(padding: str, padded: str) -> None:
    options = Augmentation(crop=[30, 40], padding=padding, padded=padded, flip_chance=0)
    result = augment(chart(20, 30), options, np.random.default_rng(0))
    inside = np.zeros((30, 40), bool)
    top, left = (5, 5) if padded == "around" else (0, 0)
    inside[top : top + 20, left : left + 30] = True
    np.testing.assert_array_equal(result.labels != IGNORE, inside)
    np.testing.assert_array_equal(result.heights != HEIGHTS, inside)
    fill = np.array(options.mean) * 255 if padding == "mean" else np.zeros(3)
    outside = colours(result.image, options)[:, ~inside]
    np.testing.assert_allclose(outside, np.broadcast_to(fill[:, None], outside.shape), atol=0.01)


def test_blur_and_jitter_change_the_image_only() -> None:
    plain = Augmentation(crop=[40, 40], flip_chance=0)
    scene = chart(40, 40)
    base = augment(scene, plain, np.random.default_rng(0))
    for change in ({"blur_chance": 1.0}, {"jitter": 0.25}):
        options = Augmentation(crop=[40, 40], flip_chance=0, **change)
        result = augment(scene, options, np.random.default_rng(0))
        assert not torch.equal(result.image, base.image)
        assert torch.equal(result.labels, base.labels)
        assert torch.equal(result.heights, base.heights)


def test_jitter_of_grey_images_only_scales() -> None:
    """A grey image has no hue or saturation: only brightness and contrast scale it."""
    scene = Scene(np.full((16, 16, 3), 100, np.uint8), np.zeros((16, 16), np.uint8), "grey")
    options = Augmentation(crop=[16, 16], jitter=0.25)
    found = [
        colours(augment(scene, options, np.random.default_rng(seed)).image, options).mean()
        for seed in range(40)
    ]
    assert 70 < min(found) < 85 and 115 < max(found) < 130


class Charts:
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Scene:
        return chart(40 + index, 50)


def test_augmentation_is_reproducible() -> None:
    options = Augmentation(crop=[30, 30], scale=[0.5, 2], rotation=10, blur_chance=0.5, jitter=0.2)
    first, second = (Augmented(Charts(), options, seed=5) for _ in range(2))
    for _ in range(2):  # a global generator would return other numbers
        torch.rand(3)
    for left, right in zip(first[Key(2, 1)], second[Key(2, 1)], strict=True):
        assert torch.equal(left, right)
    others = (first[Key(3, 1)], first[Key(2, 2)], Augmented(Charts(), options, 6)[Key(2, 1)])
    for other in others:
        assert not torch.equal(other.image, first[Key(2, 1)].image)


def test_heights_and_normalise() -> None:
    assert heights(256, 3)[:, 1].tolist() == [row // 2 for row in range(256)]
    assert heights(3, 1).flatten().tolist() == [0, 42, 85]
    image = to_tensor(np.full((2, 2, 3), 255, np.uint8))
    red = normalise(image, Augmentation())[0, 0, 0].item()
    assert red == pytest.approx((1 - 0.485) / 0.229, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crop": [0, 5]}, r"augmentation\.crop: must be 2 positive numbers, got \[0, 5\]"),
        ({"flip_chance": 1.5}, r"augmentation\.flip_chance: must be 0 to 1, got 1\.5"),
        ({"padding": "white"}, r"augmentation\.padding: must be mean or black, got white"),
        ({"blur_kernel": 4}, r"augmentation\.blur_kernel: must be odd, got 4"),
    ],
)
def test_invalid_settings(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Augmented(Charts(), Augmentation(**change), 0)
