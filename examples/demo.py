"""Demonstrates stripctx in about four minutes: `make demo`, or

    python examples/demo.py [--image PATH] [--seconds 10] [--training 110] [--output demo.png]

Builds the kernels if necessary, fits a small network to a generated street scene (or to your own
image), checks the fused operators against the reference, and compares time and peak memory with
eager PyTorch and torch.compile. It compares a network in plain PyTorch before and after
`stripctx.fuse`. Then it trains a small network on generated scenes without its context module, with
it, and with it in plain PyTorch. All results are drawn in one PNG.

Exit status: 0; 1 if fused and plain results differ by more than the bounds; 2 for an invalid
argument.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no messages when the profiler starts
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import stripctx  # noqa: E402
from examples import figures  # noqa: E402
from examples.commands import Parser, natural, not_negative, positive  # noqa: E402
from examples.data.images import read_image  # noqa: E402
from examples.data.labels import DataError  # noqa: E402
from examples.demonstration import comparison, decoder, figure, training  # noqa: E402
from examples.demonstration import network as segmenter  # noqa: E402
from examples.street import scenes  # noqa: E402
from stripctx import extension  # noqa: E402

SIZE = (256, 512)  # of the generated scene
LONGEST, SHORTEST = 512, 64  # limits for the sides of an image file
CLUSTERS = 8
CLUSTER_COLOURS = (
    (142, 202, 230), (33, 100, 150), (244, 162, 97), (88, 152, 90),
    (196, 48, 76), (233, 196, 106), (123, 63, 160), (84, 86, 110),
)  # fmt: skip


class Subject(NamedTuple):
    """An image, its labels, and the names and colours of the classes."""

    image: np.ndarray
    labels: np.ndarray
    palette: list[tuple[str, tuple[int, int, int]]]
    drawn: bool


class ArgumentError(Exception):
    """An invalid argument."""


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
    share = float((prediction == subject.labels).mean())
    error = comparison.check(console, network.context, features)
    found = comparison.against_plain(
        console, network.context, features, not options.without_compile
    )
    feature, gate, channel = comparison.strongest(network.context, features)
    decoded = decoder.before_and_after(console, image, len(subject.palette))
    study = tell_study(console, options.training) if options.training else None
    target = "truth" if subject.drawn else "pseudo-labels (k-means)"
    figure.draw(
        figure.Content(
            image=subject.image,
            labels=subject.labels,
            prediction=prediction,
            palette=subject.palette,
            labels_title="truth" if subject.drawn else "pseudo-labels",
            prediction_title=f"After {steps} steps: {share:.1%} of the pixels match the {target}",
            feature=feature,
            gate=gate,
            channel=channel + 1,
            channels=features.size(1),
            times={name: found.median(name) * 1e3 for name in found.times},
            peaks={name: peak / 2**20 for name, peak in found.peaks.items()},
            measured="StripPooling, forward and backward",
            footnote=f"Features {' x '.join(map(str, features.shape))}, float32, channels_last. "
            f"Fused against reference in float64: at most {error:.1e} apart. "
            f"stripctx {stripctx.__version__}, {kernels()} kernels; "
            f"torch {torch.__version__}, {torch.get_num_threads()} threads.",
            decoder=decoded,
            study=study,
        ),
        options.output,
    )
    console.print(f"[bold]Wrote {options.output}[/]")
    right = error <= comparison.BOUND and decoded.agrees and (study is None or study.agrees)
    return 0 if right else 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser("demo", description="Demonstrates stripctx and draws the results.")
    parser.add_argument("--image", type=Path, help="an image file (default: a generated scene)")
    parser.add_argument("--seconds", type=positive, default=10.0, help="duration of the fit")
    parser.add_argument(
        "--training", type=not_negative, default=110.0, help="seconds of training, or 0"
    )
    parser.add_argument("--output", type=Path, default=Path("demo.png"), help="the PNG to write")
    parser.add_argument("--seed", type=natural, default=35, help="for scene and network")
    parser.add_argument("--without-compile", action="store_true", help="skip torch.compile")
    return parser.parse_args(arguments)


def tell_kernels(console: Console) -> None:
    """Prints which kernels are used, and why others are not."""
    status = extension.status()
    for name, library in status.libraries.items():
        built = f", built in {library.seconds:.0f} s" if library.seconds else ""
        state = f"native kernels, {library.origin}{built}" if library.loaded else library.reason
        console.print(f"[bold]{name}[/] {state}", highlight=False)
    if not status.libraries:
        console.print(f"[bold]{status.backend}[/] kernels in PyTorch, selected by STRIPCTX_BACKEND")


def kernels() -> str:
    """The name of the kernels in use."""
    status = extension.status()
    native = any(library.loaded for library in status.libraries.values())
    return "native" if native and status.backend == "auto" else status.backend


def tell_study(console: Console, seconds: float) -> training.Study:
    """Trains the small networks and prints the results."""
    found = training.study(console, seconds)
    scores = ", ".join(f"{label} {score:.1%}" for label, score in found.scores.items())
    console.print(f"mIoU on unseen scenes: {scores}", highlight=False)
    verdict = "[green]agree[/]" if found.agrees else "[bold red]DIFFER[/]"
    console.print(
        f"The fused and the plain curve {verdict}: in the first step at most "
        f"{found.first_gap:.0e} apart (bound {training.FIRST_BOUND:.0e}), on average "
        f"{found.mean_gap:.1%} (bound {training.MEAN_BOUND:.0%}).",
        highlight=False,
    )
    times = ", ".join(
        f"{figures.LABELS[name]} {seconds * 1e3:.2f} ms" for name, seconds in found.times.items()
    )
    console.print(f"Its context module, forward and backward: {times}", highlight=False)
    return found


def draw(seed: int) -> Subject:
    image, labels = scenes.scene(seed, *SIZE)
    return Subject(image, labels, [(each.name, each.colour) for each in scenes.CLASSES], True)


def read(path: Path) -> Subject:
    """Reads an image, reduces it to at most 512 pixels per side, and adds pseudo-labels."""
    try:
        picture = Image.fromarray(read_image(path, upright=True))
    except DataError as refusal:
        raise ArgumentError(str(refusal)) from None
    if min(picture.size) < SHORTEST:
        width, height = picture.size
        raise ArgumentError(
            f"{path}: {width} x {height} pixels; each side must have {SHORTEST} or more"
        )
    shrink = min(1.0, LONGEST / max(picture.size))
    width, height = (max(16, round(side * shrink / 8) * 8) for side in picture.size)
    image = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    labels = segmenter.clusters(image, CLUSTERS)
    names = [f"cluster {index + 1}" for index in range(CLUSTERS)]
    return Subject(image, labels, list(zip(names, CLUSTER_COLOURS, strict=True)), False)


def check_output(path: Path) -> None:
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ArgumentError(f"{path}: cannot be written")


def prepare(subject: Subject) -> tuple[segmenter.Segmenter, Tensor]:
    network = segmenter.Segmenter(len(subject.palette)).to(memory_format=torch.channels_last)
    image = segmenter.to_tensor(subject.image)
    return network, image.contiguous(memory_format=torch.channels_last)


def fit(
    console: Console,
    network: segmenter.Segmenter,
    image: Tensor,
    subject: Subject,
    seconds: float,
) -> int:
    """Fits the network, showing progress; returns the number of steps."""
    labels = torch.from_numpy(subject.labels).long()[None]
    if not subject.drawn:
        console.print("The image has no labels: fitting clusters of colour and position.")
    columns = (
        TextColumn("fitting"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("loss {task.fields[loss]:.3f}, {task.fields[accuracy]:.1%} correct pixels"),
    )
    count = 0
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("fit", total=seconds, loss=float("nan"), accuracy=0.0)
        for step in segmenter.fit(network, image, labels, seconds=seconds):
            count += 1
            progress.update(task, completed=step.elapsed, loss=step.loss, accuracy=step.accuracy)
    return count


if __name__ == "__main__":
    sys.exit(main())
