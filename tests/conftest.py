"""Common setup of all tests: device under test, fixed seed, convolutions in full precision.

STRIPCTX_BACKEND chooses the kernels (native, reference, emulated); STRIPCTX_TEST_DEVICE=cuda runs
the family files on a GPU.
"""

from __future__ import annotations

import os

# Several test processes share the cores: idle OpenMP threads sleep, and all but the operators' own
# tests, which divide their work, use one thread. Must be set before torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Files that take minutes: begun first, so that no process waits for one of them at the end.
LONGEST = ("test_sanitize", "test_toolchain", "test_gpu_script")
FAMILIES = ("strip", "pyramid", "upsample", "height", "encoding", "labels")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> None:
    divided = request.path.stem.removeprefix("test_") in FAMILIES
    torch.set_num_threads(2 if divided else 1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def exact_convolutions() -> None:
    """Disables tf32 on a GPU, which cuDNN uses for convolutions by default."""
    torch.backends.cudnn.allow_tf32 = False
