"""Interpolation weights (csrc/core/interpolation.hpp) against torch.nn.functional.interpolate, and
their transpose against themselves."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from . import build

pytestmark = pytest.mark.slow  # compiles C++

SIZES = (1, 2, 3, 5, 6, 12, 20, 33, 60, 97, 301)

each_size = pytest.mark.parametrize("extent", SIZES)
each_cells = pytest.mark.parametrize("cells", SIZES)
MODES = ("bilinear", "aligned", "nearest", "nearest-exact")  # in the order of Mode
each_mode = pytest.mark.parametrize("mode", range(len(MODES)), ids=MODES)


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return build.module("interpolation", tmp_path_factory.mktemp("core"))


def matrix(index: np.ndarray, weight: np.ndarray, cells: int) -> np.ndarray:
    """(positions, cells): both weights of each position, at their cells."""
    result = np.zeros((len(index), cells), dtype=weight.dtype)
    for column in (0, 1):
        np.add.at(result, (np.arange(len(index)), index[:, column]), weight[:, column])
    return result


def torch_matrix(cells: int, extent: int, mode: int, dtype: torch.dtype) -> np.ndarray:
    """The same matrix, from interpolating the rows of the identity."""
    identity = torch.eye(cells, dtype=dtype)[None]
    if mode > 1:  # as maps, because torch computes nearest lines in another dtype
        columns = F.interpolate(identity.float()[..., None], (extent, 1), mode=MODES[mode])
        return columns[0, :, :, 0].T.numpy()
    return F.interpolate(identity, extent, mode="linear", align_corners=mode == 1)[0].T.numpy()


@each_cells
@each_size
@each_mode
def test_weights_equal_torchs(core: ModuleType, cells: int, extent: int, mode: int) -> None:
    for samples, dtype, error in (
        (core.samples64, torch.float64, 1e-12),
        (core.samples32, torch.float32, 4e-7 * cells),
    ):
        index, weight = samples(cells, extent, mode, 0.0)
        ours = matrix(index, weight, cells)
        assert np.abs(ours - torch_matrix(cells, extent, mode, dtype)).max() <= error
        assert index.min() >= 0 and index.max() < cells
        assert (np.diff(index, axis=0) >= 0).all()  # the kernels rely on this


@each_cells
@each_size
@each_mode
def test_transpose_is_exact(core: ModuleType, cells: int, extent: int, mode: int) -> None:
    for samples, transpose in (
        (core.samples64, core.transpose64),
        (core.samples32, core.transpose32),
    ):
        index, weight = samples(cells, extent, mode, 0.0)
        assert np.array_equal(transpose(cells, extent, mode, 0.0).T, matrix(index, weight, cells))
