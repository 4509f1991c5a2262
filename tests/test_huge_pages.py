"""Large results of the native CPU kernels are in memory with huge pages requested: page faults of
small pages would cost more than the arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stripctx import extension, functional

SMAPS = Path("/proc/self/smaps")


@pytest.mark.skipif(extension.backend() != "native", reason="tests the native CPU kernels")
@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").is_dir() or not SMAPS.is_file(),
    reason="this system has no huge pages",
)
def test_large_results_ask_for_huge_pages() -> None:
    out = functional.strip_add_relu(torch.randn(1, 1, 4000, 1), torch.randn(1, 1, 1, 3000))
    assert "hg" in flags_of(out.data_ptr() + out.nbytes // 2)


def flags_of(address: int) -> list[str]:
    """The kernel's flags of the mapping that contains this address."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        first, *others = line.split()
        if not first.endswith(":"):
            begin, end = (int(bound, 16) for bound in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return others
    raise AssertionError(f"no mapping holds {address:#x}")
