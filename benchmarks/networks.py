"""Whole networks from other packages, before and after `stripctx.fuse`:

    python -m benchmarks.networks [--only NAME ...] [--modes MODE ...] [--prepare]
                                  [--without-compile] [--tiny] [--results FOLDER]

Candidates are the network itself ("own"), fused, and both under torch.compile, in float32:
inference on an image of 512 x 512, and a training step on two of 256 x 256: forward, cross-entropy
of the logits interpolated to the size of the image, backward, SGD. Samples are interleaved (see
benchmarks.measuring). Peak memory is what one call holds in addition to the parameters
(benchmarks.memory). Products are those of convolutions over interpolated maps, as reported by fuse,
which also checks that outputs and gradients agree.

Each network runs in its own process, and benchmarks/results/networks.json is written after each.
Compilation takes most of the time; --prepare only compiles into torch's caches, for a later run.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import family, machine, measuring, memory
from benchmarks.compare import check_agreement, reason
from benchmarks.measuring import Run
from benchmarks.report import RESULTS
from benchmarks.tables import median
from benchmarks.zoo import CLASSES, NETWORKS
from stripctx import fuse

MODES = {"inference": (1, 3, 512, 512), "training": (2, 3, 256, 256)}
TINY = (2, 3, 64, 64)
BUDGET = 5.0  # seconds per row, except for a minimum of rounds
LEARNING_RATE = 1e-6  # the change of the loss in a step is below rounding

Entry = dict[str, Any]


class Inference(nn.Module):
    """Extracts the logits from a network's output, at their own size."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        outputs = self.network(image)
        if isinstance(outputs, Mapping):
            outputs = outputs["logits" if "logits" in outputs else "out"]
        logits: Tensor = outputs
        return logits


class Loss(nn.Module):
    """Cross-entropy of the logits at the image's size."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.logits = Inference(network)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        logits = self.logits(image)
        whole = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
        return F.cross_entropy(whole, target)


def measured(
    name: str,
    mode: str,
    *,
    tiny: bool = False,
    compiled: bool = True,
    prepare: bool = False,
    budget: float = BUDGET,
) -> Entry:
    """Measures one network in one mode; with `prepare`, only compiles."""
    torch.manual_seed(0)
    memory.warm_blocks()
    shape, training = TINY if tiny else MODES[mode], mode == "training"
    own: nn.Module = (Loss if training else Inference)(NETWORKS[name](tiny))
    without_chance(own.train(training))
    arguments = [torch.randn(shape)]
    if training:
        arguments.append(torch.randint(CLASSES, (shape[0], *shape[2:])))
    fused = copy.deepcopy(own)
    report = fuse(fused, *arguments)
    before, after = report.products
    entry: Entry = {
        "network": name,
        "mode": mode,
        "shape": list(shape),
        "products": {"before": before, "after": after},
        "replaced": [one.path for one in report.replaced],
        "left": [str(one) for one in report.left],
    }
    modules: dict[str, Any] = {"own": own, "fused": fused}
    if compiled:
        torch.compiler.reset()
        modules |= {
            f"{label}, compiled": torch.compile(module, dynamic=False)
            for label, module in modules.items()
        }
    runs: dict[str, Run] = {}
    failures: dict[str, str] = {}
    expected: list[Tensor] = []
    for label, module in modules.items():
        run = bound(module, arguments, training)
        started = time.perf_counter()
        try:
            out: list[Any] = [run()]
        except Exception as error:
            if label in ("own", "fused"):
                raise
            failures[label] = reason(error)
            continue
        print(f"{label}: first call {time.perf_counter() - started:.0f} s", file=sys.stderr)
        expected = expected or out
        check_agreement(label, out, expected, module=True)
        runs[label] = run
    if failures:
        entry["failures"] = failures
    if prepare:
        return entry
    peaks = {label: memory.peak_extra_bytes(run) for label, run in runs.items()}
    times = measuring.interleave(runs, budget=0.0 if tiny else budget)
    entry["candidates"] = {
        label: {"samples_ms": family.milliseconds(times[label]), "peak_bytes": peaks[label]}
        for label in runs
    }
    return entry


def without_chance(network: nn.Module) -> None:
    """Disables dropout of elements and of residual branches, so that all calls agree."""
    module: Any
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0


def bound(module: Any, arguments: Sequence[Tensor], training: bool) -> Run:
    """One call: logits, or the loss before an SGD step. Gradients are cleared."""
    if not training:

        def infer() -> Tensor:
            with torch.no_grad():
                logits: Tensor = module(*arguments)
                return logits

        return infer
    optimizer = torch.optim.SGD(module.parameters(), LEARNING_RATE, momentum=0.9)

    def step() -> Tensor:
        loss: Tensor = module(*arguments)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def attempt(name: str, mode: str, options: argparse.Namespace) -> Entry:
    """Measures in a separate process; an error becomes an entry."""
    command = [sys.executable, "-m", "benchmarks.networks", "--one", name, mode]
    command += ["--budget", str(options.budget)]
    command += [f"--{flag}" for flag in ("tiny", "prepare") if getattr(options, flag)]
    command += ["--without-compile"] if options.without_compile else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    try:
        entry: Entry = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        why = f"its process ended with status {done.returncode}"
        entry = {"network": name, "mode": mode, "error": why}
    return entry


def one(name: str, mode: str, options: argparse.Namespace) -> Entry:
    """Measures in this process."""
    try:
        return measured(
            name,
            mode,
            tiny=options.tiny,
            compiled=not options.without_compile,
            prepare=options.prepare,
            budget=options.budget,
        )
    except Exception as error:
        return {"network": name, "mode": mode, "error": reason(error)}


def summary(entry: Entry) -> str:
    """One line of progress."""
    what = f"{entry['network']}, {entry['mode']}"
    if "error" in entry:
        return f"{what}: {entry['error']}"
    before, after = (entry["products"][key] / 1e9 for key in ("before", "after"))
    text = f"{what}: products {before:.3g} G -> {after:.3g} G"
    times = {label: median(each) for label, each in entry.get("candidates", {}).items()}
    for label, ms in times.items():
        text += f", {label} {ms:.4g} ms"
    return text + "".join(f", {label}: {why}" for label, why in entry.get("failures", {}).items())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.networks", description=__doc__.split(":")[0])
    parser.add_argument("--only", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=list(MODES))
    parser.add_argument("--prepare", action="store_true", help="compile, measure nothing")
    parser.add_argument("--without-compile", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="few channels, small images")
    parser.add_argument("--results", type=Path, help="folder; else benchmarks/results")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of samples per row")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "MODE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        name, mode = options.one
        print(json.dumps(one(name, mode, options)))
        return 0
    folder = options.results or (None if options.tiny else RESULTS)
    entries: list[Entry] = []
    for name, mode in product(options.only, options.modes):
        entries.append(attempt(name, mode, options))
        print(summary(entries[-1]), flush=True)
        if folder is not None and not options.prepare:
            write(folder / "networks.json", entries)
    return 1 if any("error" in entry for entry in entries) else 0


def write(path: Path, entries: Sequence[Entry]) -> None:
    """Writes new entries, and keeps the file's other ones."""
    now = {(entry["network"], entry["mode"]) for entry in entries}
    before = json.loads(path.read_text())["entries"] if path.exists() else []
    kept = [entry for entry in before if (entry["network"], entry["mode"]) not in now]
    order = list(product(NETWORKS, MODES))
    every = sorted([*kept, *entries], key=lambda each: order.index((each["network"], each["mode"])))
    family.write(path, machine.describe(), every)


if __name__ == "__main__":
    sys.exit(main())
