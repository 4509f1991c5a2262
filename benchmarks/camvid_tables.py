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
    """The runs of each network, by seed."""
    found: dict[str, dict[int, Entry]] = {}
    for entry in entries:
        found.setdefault(entry["network"], {})[entry["seed"]] = entry
    return found


def complete(entries: Sequence[Entry]) -> list[Entry]:
    """The runs with seeds that every network has, so that means can be compared."""
    networks = by_network(entries).values()
    seeds = set.intersection(*(set(runs) for runs in networks))
    return [entry for entry in entries if entry["seed"] in seeds]


def scores(entries: Sequence[Entry]) -> Table:
    """A row per network: the score of each seed, and the mean over the complete seeds."""
    networks, compared = by_network(entries), by_network(complete(entries))
    seeds = sorted({entry["seed"] for entry in entries})
    several = any(len(runs) > 1 for runs in compared.values())
    headers = ["", "parameters", *(f"mIoU, seed {seed}" for seed in seeds)]
    headers += [*(["mean"] if several else []), "above the FCN", "pixel accuracy"]
    rows = []
    for name, runs in compared.items():
        alone = networks[name]
        mean = _mean(runs, lambda run: run["miou"])
        rows.append(
            [
                NETWORKS[name],
                f"{next(iter(runs.values()))['parameters'] / 1e6:.1f} M",
                *(f"{alone[seed]['miou']:.1%}" if seed in alone else "" for seed in seeds),
                *([f"{mean:.1%}"] if several else []),
                _above(mean, compared.get("fcn", {})) if name != "fcn" else "",
                f"{_mean(runs, lambda run: run['pixel_accuracy']):.1%}",
            ]
        )
    return headers, rows


def classes(entries: Sequence[Entry]) -> Table:
    """A row per class: the mean IoU over the complete seeds."""
    networks = by_network(complete(entries))
    rows = []
    for each in entries[0]["iou"]:
        means = [
            statistics.mean(run["iou"][each] for run in runs.values()) for runs in networks.values()
        ]
        rows.append([each, *(f"{mean:.1%}" for mean in means)])
    return ["", *(NETWORKS[name] for name in networks)], rows


def settings(recipe: dict[str, Any], entries: Sequence[Entry]) -> str:
    """A sentence that describes the training settings."""
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


def _mean(runs: dict[int, Entry], value: Callable[[Entry], float]) -> float:
    return statistics.mean(value(run) for run in runs.values())


def _above(mean: float, others: dict[int, Entry]) -> str:
    """The difference of the means, in points."""
    return f"{100 * (mean - _mean(others, lambda run: run['miou'])):+.1f}" if others else ""
