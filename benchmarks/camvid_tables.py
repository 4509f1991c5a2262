"""The tables of benchmarks.camvid: scores of every network and seed, and of every class."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

NETWORKS = {
    "fcn": "FCN",
    "pspnet": "PSPNet",
    "spnet": "SPNet (mixed pooling)",
    "deeplabv3plus_hanet": "DeepLabV3+ with HANet",
    "encnet": "EncNet",
    "upernet": "UPerNet",
}

Entry = dict[str, Any]
Table = tuple[list[str], list[list[str]]]  # headers and rows


def by_network(entries: Sequence[Entry]) -> dict[str, dict[int, Entry]]:
    """The runs of every network, by seed."""
    found: dict[str, dict[int, Entry]] = {}
    for entry in entries:
        found.setdefault(entry["network"], {})[entry["seed"]] = entry
    return found


def scores(entries: Sequence[Entry]) -> Table:
    """A line a network. What it is above the FCN is a mean over the seeds that both have."""
    networks = by_network(entries)
    seeds = sorted({entry["seed"] for entry in entries})
    headers = ["", "parameters", *(f"mIoU, seed {seed}" for seed in seeds)]
    headers += ["mean", "above the FCN", "pixel accuracy", "seconds"]
    rows = []
    for name, runs in networks.items():
        rows.append(
            [
                NETWORKS[name],
                f"{next(iter(runs.values()))['parameters'] / 1e6:.1f} M",
                *(f"{runs[seed]['miou']:.1%}" if seed in runs else "" for seed in seeds),
                _mean(runs, lambda run: run["miou"]),
                _above(runs, networks.get("fcn", {})) if name != "fcn" else "",
                _mean(runs, lambda run: run["pixel_accuracy"]),
                f"{statistics.mean(run['seconds'] for run in runs.values()):.0f}",
            ]
        )
    return headers, rows


def classes(entries: Sequence[Entry]) -> Table:
    """A line a class: the mean IoU over a network's seeds."""
    networks = by_network(entries)
    rows = [
        [each, *(_mean(runs, lambda run, of=each: run["iou"][of]) for runs in networks.values())]
        for each in entries[0]["iou"]
    ]
    return ["", *(NETWORKS[name] for name in networks)], rows


def settings(recipe: dict[str, Any], entries: Sequence[Entry]) -> str:
    """How all of them were trained, in a sentence."""
    train, varied, rates = recipe["train"], recipe["augmentation"], recipe["optimizer"]
    height, width = varied["crop"]
    shrunk = f"{varied['scale'][0]:g} to {varied['scale'][1]:g}"
    seen = train["epochs"] * (entries[0]["scenes"] // train["batch"])
    return (
        f"{recipe['network']['backbone'].removeprefix('timm:')}, ImageNet's weights, output stride "
        f"{recipe['network']['options']['output_stride']}; {train['epochs']} epochs, {seen} steps "
        f"of {train['batch']} crops of {height} x {width} from images at {shrunk} of their size; "
        f"{rates['kind'].upper()}, rate {rates['rate']:g}, {_heads(rates['groups'])}, warm-up "
        f"{rates['warmup']} steps; last weights, validation images whole at "
        f"{train['validate_scale']:g} of their size, labels at their own"
    )


def _heads(groups: list[dict[str, Any]]) -> str:
    return f"heads {groups[0]['rate']:g} times that" if groups else "heads the same"


def _mean(runs: dict[int, Entry], value: Callable[[Entry], float]) -> str:
    return f"{statistics.mean(value(run) for run in runs.values()):.1%}"


def _above(runs: dict[int, Entry], others: dict[int, Entry]) -> str:
    both = runs.keys() & others.keys()
    if not both:
        return ""
    points = [100 * (runs[seed]["miou"] - others[seed]["miou"]) for seed in both]
    return f"{statistics.mean(points):+.1f}"
