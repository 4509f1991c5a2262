"""benchmarks.exported on a network with one convolution: its files, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import exported, report, zoo

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
NAME = exported.EXPORTED[0]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image)


@pytest.mark.filterwarnings("ignore")
def test_files_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zoo.NETWORKS, NAME, lambda tiny: Small())
    folders = ["--files", str(tmp_path), "--results", str(tmp_path)]
    assert exported.main(["--only", NAME, "--tiny", *folders]) == 0
    result = json.loads((tmp_path / "exported.json").read_text())
    (entry,) = result["entries"]
    assert entry["network"] == NAME and set(entry["candidates"]) == {"own", "fused"}
    assert result["machine"]["kernels"].startswith("ONNX Runtime")
    table = report.update("<!-- benchmarks:exported -->\n<!-- /benchmarks:exported -->", tmp_path)
    assert NAME in table and "times as fast" in table and "ONNX Runtime" in table
    path = tmp_path / f"{exported.stem(NAME, True)}.pt"
    image, logits = torch.load(path)
    torch.save((image, 2 * logits), path)
    with pytest.raises(RuntimeError, match="logits differ"):  # existing files are used
        exported.main(["--only", NAME, "--tiny", *folders])
