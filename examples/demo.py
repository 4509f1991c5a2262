"""One picture through strip pooling, in less than a minute: `make demo`, or

    python examples/demo.py [--image PATH] [--seconds 10] [--output demo.png] [--seed 35]

Builds the kernels if need be, fits a small network to a street scene that it draws (or to your own
picture), holds the fused operators against the reference, compares time and peak memory with eager
PyTorch and torch.compile, and writes one PNG that shows it all.

Exit status: 0; 1 where fused and reference differ by more than the bound; 2 for a bad argument.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import stripctx  # noqa: E402
from benchmarks import compare, machine, plots  # noqa: E402
from examples import demo_figure, demo_network  # noqa: E402
from examples.street import scenes  # noqa: E402
from stripctx import extension, functional, reference  # noqa: E402

SIZE = (256, 512)  # of the scene that is drawn
LONGEST, SHORTEST = 512, 64  # sides of a picture that is read
CLUSTERS = 8
CLUSTER_COLOURS = (
    (142, 202, 230), (33, 100, 150), (244, 162, 97), (88, 152, 90),
    (196, 48, 76), (233, 196, 106), (123, 63, 160), (84, 86, 110),
)  # fmt: skip
BOUND = 1e-5  # of max |fused - reference| / max |reference|, float32 against float64
BUSY = 2.0  # times the 20th percentile: where the 80th lies on a machine that others use


class Subject(NamedTuple):
    """The picture, what it is to be segmented into, and the names and colours of the classes."""

    image: np.ndarray
    labels: np.ndarray
    palette: list[tuple[str, tuple[int, int, int]]]
    drawn: bool


class ArgumentError(Exception):
    """An argument that the demo cannot work with."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    console = Console()
    try:
        subject = read(options.image) if options.image else draw(options.seed)
        check_output(options.output)
    except ArgumentError as refusal:
        print(f"demo: {refusal}", file=sys.stderr)
        return 2
    tell_kernels(console)
    torch.manual_seed(options.seed)
    network, image = prepare(subject)
    steps = fit(console, network, image, subject, options.seconds)
    with torch.no_grad():
        features = network.stem(image)
        prediction = network(image).argmax(1)[0].byte().numpy()
    right = float((prediction == subject.labels).mean())
    error = check(console, network.context, features)
    found = measure(console, network.context, features, not options.without_compile)
    feature, gate, channel = strongest(network.context, features)
    facts = machine.describe()
    target = "truth" if subject.drawn else "pseudo-labels (k-means)"
    demo_figure.draw(
        demo_figure.Content(
            image=subject.image,
            labels=subject.labels,
            prediction=prediction,
            palette=subject.palette,
            labels_title="truth" if subject.drawn else "pseudo-labels",
            prediction_title=f"After {steps} steps: {right:.1%} of the pixels as in the {target}",
            feature=feature,
            gate=gate,
            channel=channel + 1,
            channels=features.size(1),
            times={name: samples.median * 1e3 for name, samples in found.times.items()},
            peaks={n: peak / 2**20 for n, peak in found.peaks.items() if peak is not None},
            measured="StripPooling, forward and backward",
            footnote=f"Features {' x '.join(map(str, features.shape))}, float32, channels_last. "
            f"Fused against reference in float64: at most {error:.1e} apart. "
            f"stripctx {stripctx.__version__}, {facts['kernels']} kernels; torch {facts['torch']}; "
            f"{facts['processor']}, {facts['threads']} threads.",
        ),
        options.output,
    )
    console.print(f"[bold]Wrote {options.output}[/]")
    return 0 if error <= BOUND else 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Strip pooling on one picture.")
    parser.add_argument("--image", type=Path, help="a picture; without one, a scene is drawn")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to fit")
    parser.add_argument("--output", type=Path, default=Path("demo.png"), help="the PNG to write")
    parser.add_argument("--seed", type=int, default=35, help="of the scene and of the network")
    parser.add_argument("--without-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args(arguments)
    if options.seconds <= 0:
        parser.error(f"--seconds must be positive, got {options.seconds}")
    if options.seed < 0:
        parser.error(f"--seed must not be negative, got {options.seed}")
    return options


def tell_kernels(console: Console) -> None:
    """Which kernels run, and why not others."""
    status = extension.status()
    for name, library in status.libraries.items():
        built = f", built in {library.seconds:.0f} s" if library.seconds else ""
        state = f"native kernels, {library.origin}{built}" if library.loaded else library.reason
        console.print(f"[bold]{name}[/] {state}", highlight=False)
    if not status.libraries:
        console.print(f"[bold]{status.backend}[/] kernels in PyTorch, by STRIPCTX_BACKEND")


def draw(seed: int) -> Subject:
    image, labels = scenes.scene(seed, *SIZE)
    return Subject(image, labels, [(each.name, each.colour) for each in scenes.CLASSES], True)


def read(path: Path) -> Subject:
    """A picture of at most 512 pixels a side, and pseudo-labels for it."""
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError:
        raise ArgumentError(f"{path}: there is no such image") from None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ArgumentError(
            f"{path}: cannot be read as an image ({compare.reason(error)})"
        ) from None
    if min(picture.size) < SHORTEST:
        width, height = picture.size
        raise ArgumentError(
            f"{path}: {width} x {height} pixels; each side must have {SHORTEST} or more"
        )
    shrink = min(1.0, LONGEST / max(picture.size))
    width, height = (max(16, round(side * shrink / 8) * 8) for side in picture.size)
    image = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    labels = demo_network.clusters(image, CLUSTERS)
    names = [f"cluster {index + 1}" for index in range(CLUSTERS)]
    return Subject(image, labels, list(zip(names, CLUSTER_COLOURS, strict=True)), False)


def check_output(path: Path) -> None:
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ArgumentError(f"{path}: cannot be written")


def prepare(subject: Subject) -> tuple[demo_network.Segmenter, Tensor]:
    network = demo_network.Segmenter(len(subject.palette)).to(memory_format=torch.channels_last)
    image = demo_network.to_tensor(subject.image)
    return network, image.contiguous(memory_format=torch.channels_last)


def fit(
    console: Console,
    network: demo_network.Segmenter,
    image: Tensor,
    subject: Subject,
    seconds: float,
) -> int:
    """Shows how it goes; returns the number of steps."""
    labels = torch.from_numpy(subject.labels).long()[None]
    if not subject.drawn:
        console.print("The picture has no labels: fitting to clusters of its colours and places.")
    columns = (
        TextColumn("fitting"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("loss {task.fields[loss]:.3f}, {task.fields[accuracy]:.1%} of the pixels right"),
    )
    count = 0
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("fit", total=seconds, loss=float("nan"), accuracy=0.0)
        for step in demo_network.fit(network, image, labels, seconds=seconds):
            count += 1
            progress.update(task, completed=step.elapsed, loss=step.loss, accuracy=step.accuracy)
    return count


def check(console: Console, layer: stripctx.StripPooling, features: Tensor) -> float:
    """The largest relative error of the fused functions and their gradients, on real features."""
    with torch.no_grad():
        rows, cols = functional.strip_pool(features)
        rows, cols = layer.bn1(layer.conv1(rows)), layer.bn2(layer.conv2(cols))
    gate_arguments = [features, rows, cols, layer.conv3.weight, layer.conv3.bias]
    worst = {"forward": 0.0, "gradients": 0.0}
    for fused, plain, arguments in (
        (functional.strip_pool, reference.strip.strip_pool, [features]),
        (functional.strip_gate, reference_gate, gate_arguments),
    ):
        ours = [value.detach().clone().requires_grad_() for value in arguments]
        exact = [value.detach().double().requires_grad_() for value in arguments]
        results = compare.bind(fused, ours, "fwd+bwd")()
        expected = compare.bind(plain, exact, "fwd+bwd")()
        for index, (value, truth) in enumerate(zip(results, expected, strict=True)):
            kind = "gradients" if index >= len(results) - len(arguments) else "forward"
            error = ((value.double() - truth).abs().max() / truth.abs().max()).item()
            worst[kind] = max(worst[kind], error)
    error = max(worst.values())
    verdict = "[green]agrees[/]" if error <= BOUND else "[bold red]DIFFERS[/]"
    console.print(
        f"Fused {verdict} with the reference in float64: at most {worst['forward']:.1e} apart "
        f"forward, {worst['gradients']:.1e} in the gradients (bound {BOUND:.0e})."
    )
    return error


def reference_gate(x: Tensor, rows: Tensor, cols: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    hidden = reference.strip.strip_add_relu(rows, cols)
    return reference.strip.sigmoid_gate(x, torch.nn.functional.conv2d(hidden, weight), bias)


def measure(
    console: Console, layer: stripctx.StripPooling, features: Tensor, with_compile: bool
) -> compare.Comparison:
    """Forward, then forward and backward; prints the table and returns the latter."""
    layer = copy.deepcopy(layer)
    x = features.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    found: dict[str, compare.Comparison] = {}
    with console.status("measuring, compiling the peer"):
        for mode in compare.MODES:
            found[mode] = compare.compare(layer, [x], mode=mode, with_compile=with_compile)
    table = Table(
        title=f"StripPooling on {' x '.join(map(str, x.shape))}, medians", title_justify="left"
    )
    table.add_column("")
    for heading in ("forward", "forward + backward", "peak memory"):
        table.add_column(heading, justify="right")
    last = found["fwd+bwd"]
    for name in last.times:
        times = [
            f"{each.times[name].median * 1e3:.2f} ms"
            for each in found.values()
            if name in each.times
        ]
        peak = last.peaks[name]
        memory = "unknown" if peak is None else f"{peak / 2**20:.1f} MiB"
        table.add_row(plots.LABELS[name], *times, memory)
    console.print(table)
    spread = max(t.p80 / t.p20 for each in found.values() for t in each.times.values())
    if spread > BUSY:
        console.print(f"[yellow]This machine is busy: times vary by a factor of {spread:.1f}.[/]")
    for name, why in last.failures.items():
        console.print(f"{plots.LABELS[name]} is not in the table: {why}")
    return last


@torch.no_grad()
def strongest(layer: stripctx.StripPooling, features: Tensor) -> tuple[np.ndarray, np.ndarray, int]:
    """The channel whose gate varies most: its features, its gate, its number."""
    rows, cols = functional.strip_pool(features)
    gates = functional.strip_gate(
        torch.ones_like(features),
        layer.bn1(layer.conv1(rows)),
        layer.bn2(layer.conv2(cols)),
        layer.conv3.weight,
        layer.conv3.bias,
    )[0]
    channel = int((gates.std((1, 2)) * (features[0].std((1, 2)) > 0)).argmax())
    return features[0, channel].numpy(), gates[channel].numpy(), channel


if __name__ == "__main__":
    sys.exit(main())
