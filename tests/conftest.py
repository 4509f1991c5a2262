"""What every test shares: the device under test and a fixed seed.

STRIPCTX_BACKEND chooses the kernels (native, reference, emulated); STRIPCTX_TEST_DEVICE=cuda runs the
family files on a GPU.
"""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
