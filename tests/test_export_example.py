"""examples/export.py: the files it writes, and its report of a file with other results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from examples import export  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of torch's exporters
SMALL = ["fcn", "--classes", "3", "--backbone", "resnet18", "--size", "32", "48"]


@pytest.mark.slow
@pytest.mark.parametrize("labels", [False, True])
def test_files_compute_the_networks_outputs(tmp_path: Path, labels: bool) -> None:
    pytest.importorskip("onnxruntime")
    more = [
        "--formats",
        "onnx",
        "pt2",
        "--output",
        str(tmp_path),
        *(["--labels"] if labels else []),
    ]
    assert export.main([*SMALL, *more]) == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"fcn.onnx", "fcn.pt2"}


@pytest.mark.parametrize("labels", [False, True])
def test_a_difference_is_a_failure(labels: bool, capsys: pytest.CaptureFixture[str]) -> None:
    image = torch.randn(1, 3, 4, 5)
    right = (lambda x: x.argmax(1)) if labels else (lambda x: x)
    wrong = (lambda x: 2 - x.argmax(1)) if labels else (lambda x: 1.001 * x)
    assert export.report(right, image, {"right": right}) == 0
    assert export.report(right, image, {"right": right, "wrong": wrong, "last": right}) == 1
    assert "wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("network", "said"), [("deepten", "classifies"), ("missing.pt", "missing.pt")]
)
def test_refusals(network: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([network, "--backbone", "resnet18"]) == 2
    assert said in capsys.readouterr().err
