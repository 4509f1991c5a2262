"""benchmarks.networks on tiny networks: all candidates, the result file, the tables."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from torch import nn

from benchmarks import decoders, memory, networks, report, tables, zoo
from stripctx.fusion import cost

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = {"transformers": oracles.transformers, "smp": oracles.whole_smp, "timm": oracles.timm}


def require(name: str) -> None:
    """Skips the test if the package is not installed."""
    PACKAGES.get(name.rpartition(", ")[2], lambda: None)()


@pytest.fixture(autouse=True)
def no_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes seconds in a process whose heap has many holes; tested in test_benchmarks.py."""
    monkeypatch.setattr(memory, "peak_extra_bytes", lambda run: 2**20)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_fuse_finds_the_head(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer products, also in a tiny network if calls cost nothing; samples of both candidates."""
    require(name)
    monkeypatch.setattr(cost, "CALL", 0)
    monkeypatch.setattr(cost, "TAP", 0.0)
    entry = networks.measured(name, "training", tiny=True, compiled=False)
    assert 0 < entry["products"]["after"] < entry["products"]["before"]
    assert entry["replaced"]
    assert set(entry["candidates"]) == {"own", "fused"}
    assert all(each["peak_bytes"] == 2**20 for each in entry["candidates"].values())
    assert all(len(each["samples_ms"]) >= 3 for each in entry["candidates"].values())


@pytest.mark.filterwarnings("ignore")
def test_compiled_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both candidates are compiled too; a candidate that does not compile is a failure entry."""

    def compile(module: nn.Module, **_: Any) -> Any:
        calls.append(module)
        if len(calls) == 2:
            raise_in = torch.nn.Module()
            raise_in.forward = lambda *_: (_ for _ in ()).throw(RuntimeError("no\ncompiler"))
            return raise_in
        return module

    calls: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", compile)
    entry = networks.measured("PSPNet ResNet-50, plain PyTorch", "inference", tiny=True)
    assert set(entry["candidates"]) == {"own", "fused", "own, compiled"}
    assert entry["failures"] == {"fused, compiled": "no"}
    assert calls[0] is not calls[1]


def test_a_step_trains_and_leaves_no_gradients() -> None:
    class Network(nn.Conv2d):
        pass

    loss = networks.Loss(Network(3, zoo.CLASSES, 1))
    arguments = [torch.randn(2, 3, 8, 8), torch.randint(zoo.CLASSES, (2, 16, 16))]
    before = [one.detach().clone() for one in loss.parameters()]
    value: Any = networks.bound(loss, arguments, True)()
    assert not value.requires_grad and value > 1
    assert all(one.grad is None for one in loss.parameters())
    assert any((a != b).any() for a, b in zip(before, loss.parameters(), strict=True))


def test_dropout_is_disabled() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(0.5))
    network[1].drop_prob = 0.3
    networks.without_chance(network)
    assert network[0].p == network[1].p == network[1].drop_prob == 0


@pytest.mark.slow
def test_the_script_writes_after_each_network(tmp_path: Path) -> None:
    """Each in a separate process; entries of other runs are kept; a failure becomes an entry."""
    old = {"network": "HRNet-W18, timm", "mode": "inference", "error": "none"}
    path = tmp_path / "networks.json"
    path.write_text(json.dumps({"machine": {}, "entries": [old]}))
    name = "PSPNet ResNet-50, plain PyTorch"
    command = [sys.executable, "-m", "benchmarks.networks", "--tiny", "--without-compile"]
    command += ["--results", str(tmp_path), "--only", name]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.count(f"{name}, ") == 2
    text = path.read_text()
    assert all(word not in text for word in ("/home", "/root", "/work"))
    entries = json.loads(text)["entries"]
    assert [one["network"] for one in entries] == [old["network"], name, name]
    assert [one["mode"] for one in entries[1:]] == list(networks.MODES)
    table = report.update("<!-- benchmarks:networks -->\n<!-- /benchmarks:networks -->", tmp_path)
    assert table.count(f"| {name} |") == 2 and "compiled" not in table


def test_a_process_that_dies_is_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    options = argparse.Namespace(budget=0.0, tiny=True, prepare=False, without_compile=True)
    entry = networks.attempt("U-Net ResNet-18, smp", "inference", options)
    assert entry["error"] == "its process ended with status 1"


def test_tables_of_networks(tmp_path: Path) -> None:
    def candidate(ms: float) -> dict[str, Any]:
        return {"samples_ms": [ms], "peak_bytes": round(ms) * 2**20}

    entry = {
        "network": "A",
        "mode": "inference",
        "shape": [1, 3, 512, 512],
        "products": {"before": 4_000_000_000, "after": 1_500_000_000},
        "candidates": {
            "own": candidate(300.0),
            "fused": candidate(100.0),
            "own, compiled": candidate(90.0),
            "fused, compiled": candidate(60.0),
        },
    }
    assert tables.networks_table([entry], short=True).splitlines() == [
        "|  | image | pass | own | fused | times as fast | products |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
        "| A | 1 x 3 x 512 x 512 | inference | 300 ms | 100 ms | 3.00 | 4 G → 1.5 G |",
    ]
    line = tables.networks_table([entry]).splitlines()[2]
    assert "| 90.0 ms | 60.0 ms | 1.50 | 300.0 MiB | 100.0 MiB | 90.0 MiB | 60.0 MiB |" in line


def test_fit_of_the_cost_model() -> None:
    """Recovers the constants from which the times were computed."""

    def entry(**sizes: Any) -> dict[str, Any]:
        decoder = decoders.Decoder(**sizes)
        products = decoder.products()
        positions = decoder.images * decoder.size**2
        maps = positions * sum(channels for channels, _ in decoder.levels)
        taps = positions * decoder.kernel**2 * decoder.outputs * len(decoder.levels)
        plain, fused = products["plain"] + 300 * maps, products["fused"] + 30 * taps
        ms = {"eager": [plain / 8e7], "fused": [fused / 8e7]}
        return {**asdict(decoder), "products": products, "ms": {"forward": ms}}

    sizes = {"images": 1, "channels": 16, "size": 64, "levels": ((64, 2), (32, 4))}
    entries = [entry(**sizes, outputs=o, kernel=k) for o, k in ((32, 1), (256, 3), (8, 3))]
    assert decoders.fit(entries, "forward") == (30, 300)
