"""Thousands of malformed calls through `torch.ops`: an error or the reference's result, never a
crash.

The calls (tests/fuzz.py) run in a separate process, whose last line of output names the call that
crashed it.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from operator_checks import DEVICE, EMULATED

REPOSITORY = Path(__file__).resolve().parent.parent
CALLS = 600 if EMULATED or DEVICE.type == "cuda" else 3000


@pytest.mark.parametrize("seed", [20])
def test_malformed_calls(seed: int) -> None:
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    finished = subprocess.run(
        [sys.executable, str(REPOSITORY / "tests" / "fuzz.py"), str(seed), str(CALLS)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    *calls, last = finished.stdout.splitlines() or [""]
    end = f"seed {seed} ended with {finished.returncode}\n{last}\n{finished.stderr[-2000:]}"
    assert finished.returncode == 0, end
    broken = [pair for pair in itertools.pairwise(calls) if pair[1].startswith("BROKEN")]
    assert not broken, broken[0]
    counts = json.loads(last)
    assert sum(sum(count.values()) for count in counts.values()) == CALLS
    for name, count in counts.items():
        assert count.get("accepted", 0) >= 1 and count.get("refused", 0) >= 1, (name, count)
