"""csrc/core: views and packs, against NumPy."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from core import build

pytestmark = pytest.mark.slow  # compiles C++


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return build.module("view", tmp_path_factory.mktemp("core"))


def aligned(*shape: int) -> np.ndarray:
    """An array whose first element lies on a 64-byte boundary."""
    count = int(np.prod(shape))
    raw = np.zeros(count + 16, np.float32)
    first = (-raw.ctypes.data % 64) // 4
    return raw[first : first + count].reshape(shape)


def test_extent_reaches_the_last_element(view: ModuleType) -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        whole = aligned(*random.integers(1, 6, 4))
        slices = tuple(
            slice(random.integers(0, n), None, random.integers(1, 3)) for n in whole.shape
        )
        part = whole[slices].transpose(random.permutation(4))
        offsets = [sum(i * s for i, s in zip(index, part.strides, strict=True)) // 4
                   for index in np.ndindex(part.shape)]  # fmt: skip
        assert view.numel(part) == part.size
        assert view.extent(part) == max(offsets) + 1
    assert view.extent(aligned(2, 0, 3, 4)) == 0


def test_channels_last_is_detected_from_strides(view: ModuleType) -> None:
    assert view.channels_last(aligned(2, 4, 5, 3).transpose(0, 3, 1, 2))
    assert not view.channels_last(aligned(2, 3, 4, 5))
    assert not view.channels_last(aligned(2, 4, 5, 1).transpose(0, 3, 1, 2))


def test_ceil_div(view: ModuleType) -> None:
    for a in range(50):
        for b in range(1, 9):
            assert view.ceil_div(a, b) == -(-a // b)


def test_packs_tile_and_align(view: ModuleType) -> None:
    whole = aligned(2, 3, 4, 8)
    assert view.packs(whole, whole, 3, 4)
    assert not view.packs(whole[..., :6], whole[..., :6], 3, 4)  # rows of 6 do not fit packs of 4
    assert view.packs(whole[..., :6], whole[..., :6], 3, 2)
    assert not view.packs(whole, aligned(2, 3, 4, 9)[..., :8], 3, 4)  # rows are 9 apart
    assert not view.packs(whole[..., 1:5], whole[..., :4], 3, 4)  # does not start on a boundary
    assert view.packs(whole[..., 4:8], whole[..., :4], 3, 4)
    assert not view.packs(whole.transpose(0, 3, 1, 2), whole.transpose(0, 3, 1, 2), 3, 2)
    assert view.packs(whole.transpose(0, 3, 1, 2), whole.transpose(0, 3, 1, 2), 1, 4)


def test_one_element_is_always_a_pack(view: ModuleType) -> None:
    odd = aligned(1, 2, 3, 7)[..., 1:6]
    assert view.packs(odd, odd, 3, 1)
    assert not view.packs(odd[..., ::2], odd[..., ::2], 3, 1)  # elements are not adjacent
