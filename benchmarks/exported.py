"""Measures `stripctx.fuse` without PyTorch: networks of other packages, exported to ONNX unchanged
("own") and fused, in ONNX Runtime:

    python -m benchmarks.exported --prepare     only export into build/onnx
    python -m benchmarks.exported               measure; export only missing files
                                  [--only NAME ...] [--tiny] [--files FOLDER] [--results FOLDER]

The results of both files are compared with the network in PyTorch. Samples are interleaved (see
benchmarks.measuring), on one image, with as many threads as torch uses.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import family, machine, measuring
from benchmarks.networks import MODES, TINY, Inference, without_chance
from benchmarks.report import REPOSITORY, RESULTS
from benchmarks.tables import PAIR, median
from benchmarks.zoo import NETWORKS
from stripctx import fuse

FILES = REPOSITORY / "build" / "onnx"
EXPORTED = ("SegFormer-B0, transformers", "SegFormer-B2, transformers", "UPerNet ResNet-34, smp")
TOLERANCE = 1e-4  # relative to the largest logit
DYNAMIC = torch.export.Dim.DYNAMIC

Entry = dict[str, Any]


def stem(name: str, tiny: bool) -> str:
    return "".join(c if c.isalnum() else "_" for c in name) + ("_tiny" if tiny else "")


def export(name: str, tiny: bool, folder: Path) -> None:
    """Writes NAME_own.onnx, NAME_fused.onnx and NAME.json with the products and an image's
    logits."""
    torch.manual_seed(0)
    own: nn.Module = Inference(NETWORKS[name](tiny)).eval()
    without_chance(own)
    shape = TINY if tiny else MODES["inference"]
    image = torch.randn(shape)
    fused = copy.deepcopy(own)
    before, after = fuse(fused, image).products
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / stem(name, tiny)
    example = torch.cat([image, image])  # a batch of 1 would be exported as a constant
    sizes = {dim: DYNAMIC for dim in (0, 2, 3)}
    with torch.no_grad():
        torch.save((image, own(image)), path.with_suffix(".pt"))
        for label, module in zip(PAIR, (own, fused), strict=True):
            file = f"{path}_{label}.onnx"
            torch.onnx.export(
                module, (example,), file, dynamo=True, verbose=False, dynamic_shapes=(sizes,)
            )
    entry: Entry = {"network": name, "mode": "inference", "shape": list(shape)}
    entry["products"] = {"before": before, "after": after}
    path.with_suffix(".json").write_text(json.dumps(entry))


def measured(name: str, tiny: bool, folder: Path, budget: float) -> Entry:
    path = folder / stem(name, tiny)
    image, expected = torch.load(path.with_suffix(".pt"), weights_only=True)
    entry: Entry = json.loads(path.with_suffix(".json").read_text())
    runs = {label: session(f"{path}_{label}.onnx", image) for label in PAIR}
    for label, run in runs.items():
        difference = float((run() - expected).abs().max() / expected.abs().max())
        if difference > TOLERANCE:
            raise RuntimeError(f"{name}, {label}: logits differ by {difference:.1e}")
    times = measuring.interleave(runs, budget=0.0 if tiny else budget)
    entry["candidates"] = {
        label: {"samples_ms": family.milliseconds(times[label])} for label in runs
    }
    return entry


def session(file: str, image: Tensor) -> Callable[[], Tensor]:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    opened = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed = {opened.get_inputs()[0].name: image.numpy()}
    return lambda: torch.from_numpy(opened.run(None, feed)[0])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.exported")
    parser.add_argument("--only", nargs="*", default=EXPORTED, choices=EXPORTED)
    parser.add_argument("--prepare", action="store_true", help="export, measure nothing")
    parser.add_argument("--tiny", action="store_true", help="few channels, a small image")
    parser.add_argument("--files", type=Path, default=FILES, help="folder of the exported files")
    parser.add_argument("--results", type=Path, help="folder; else benchmarks/results")
    parser.add_argument("--budget", type=float, default=5.0, help="seconds of samples per network")
    options = parser.parse_args(arguments)
    entries: list[Entry] = []
    for name in options.only:
        if not (options.files / stem(name, options.tiny)).with_suffix(".json").exists():
            export(name, options.tiny, options.files)
        if options.prepare:
            continue
        entries.append(measured(name, options.tiny, options.files, options.budget))
        own, fused = (median(entries[-1]["candidates"][label]) for label in PAIR)
        print(f"{name}: own {own:.4g} ms, fused {fused:.4g} ms", flush=True)
    folder = options.results or (None if options.tiny else RESULTS)
    if entries and folder is not None:
        runtime = importlib.import_module("onnxruntime")
        facts = {**machine.describe(), "kernels": f"ONNX Runtime {runtime.__version__}'s"}
        family.write(folder / "exported.json", facts, entries)
    return 0


if __name__ == "__main__":
    sys.exit(main())
