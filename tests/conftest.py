"""What every test shares: the device under test, a fixed seed, convolutions in full precision.

STRIPCTX_BACKEND chooses the kernels (native, reference, emulated); STRIPCTX_TEST_DEVICE=cuda runs
the family files on a GPU.
"""

from __future__ import annotations

import os

# Idle OpenMP threads sleep: two test processes, and those they start, share the cores. Read when
# torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def exact_convolutions() -> None:
    """float32 is float32 on a GPU too: by default cuDNN rounds operands to tf32."""
    torch.backends.cudnn.allow_tf32 = False
