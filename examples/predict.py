"""Segments images and videos:

    python examples/predict.py runs/camvid/best.pt street.jpg
    python examples/predict.py runs/camvid/best.pt photographs/ --output predicted
    python examples/predict.py runs/camvid/best.pt drive.mp4 --protocol semseg --crop 480

For street.jpg it writes street_labels.png, class indices with the dataset's palette,
street_overlay.png, the colours over the image, and street_legend.png, the classes found. For a
folder it does so for every image. For a video it writes drive_overlay.mp4, a folder drive_labels
with one label map per frame, and one legend. Animated GIF and WebP work without further packages,
other videos need `pip install stripctx[video]`.

Exit status: 0; 2 for an invalid argument or file, which the message names.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from examples import arguments, figures, videos  # noqa: E402
from examples.commands import Parser, check_output  # noqa: E402
from examples.data import files  # noqa: E402
from examples.data.images import read_image  # noqa: E402
from examples.data.labels import IGNORE, DataError  # noqa: E402
from examples.data.layouts import SUFFIXES  # noqa: E402
from examples.training import processes  # noqa: E402
from examples.training.checkpoint import CheckpointError  # noqa: E402
from examples.training.recipe import RecipeError  # noqa: E402


def main(given: list[str] | None = None) -> int:
    options = parse(given)
    console = Console()
    try:
        check_output(options.output)
        inputs = listed(options.input)
        subject = arguments.subject(options, processes.join(options.device).device)
        writer = Writer(subject, options.output, options.share, options.dataset_values)
        options.output.mkdir(parents=True, exist_ok=True)
        names = named(inputs)
        for path in track(inputs, "segmenting", console=console, disable=len(inputs) == 1):
            if videos.is_video(path):
                writer.video(path, names[path], console)
            else:
                writer.picture(path, names[path])
    except (RecipeError, CheckpointError, DataError, ValueError, OSError) as refusal:
        print(f"predict: {refusal}", file=sys.stderr)
        return 2
    console.print(f"Wrote {options.output}", style="bold", markup=False)
    return 0


def parse(given: list[str] | None) -> argparse.Namespace:
    parser = Parser("predict", description="Segments pictures and videos.")
    arguments.add(parser, inputs=True)
    parser.add_argument("--output", type=Path, default=Path("predicted"), help="output folder")
    parser.add_argument("--share", type=float, default=0.55, help="opacity of overlays")
    parser.add_argument(
        "--dataset-values",
        action="store_true",
        help="write the values of the dataset's label files, as its test server expects",
    )
    options = parser.parse_intermixed_args(given)
    if not 0 <= options.share <= 1:
        parser.error(f"--share must be 0 to 1, got {options.share}")
    return options


def listed(path: Path) -> list[Path]:
    """The path itself, or all images and videos in a folder."""
    if not path.exists():
        raise DataError(f"{path}: there is no such image, video or folder")
    if not path.is_dir():
        return [path]
    found = files.listed(path, SUFFIXES | videos.SUFFIXES)
    if not found:
        raise DataError(f"{path}: contains no images or videos")
    return found


def named(paths: Sequence[Path]) -> dict[Path, str]:
    """The stem of the output files for each input: its name without the suffix, or with it if two
    inputs would otherwise have the same name."""
    count = Counter(path.stem for path in paths)
    return {path: path.stem if count[path.stem] == 1 else path.name for path in paths}


class Writer:
    """Segments files and writes the results into a folder.

    Args:
        subject: the network and its protocol.
        folder: the output folder.
        share: the opacity of the classes' colours in overlays.
        dataset_values: whether label maps contain the dataset's values, without a palette, instead
            of class indices.
    """

    def __init__(
        self, subject: arguments.Subject, folder: Path, share: float, dataset_values: bool
    ) -> None:
        self.subject, self.folder = subject, folder
        self.share, self.dataset_values = share, dataset_values
        self.palette = subject.labelling.palette

    def picture(self, path: Path, name: str) -> None:
        image = read_image(path, self.subject.recipe.data.reading, upright=True)
        labels = self._labels(image)
        self._map(labels).save(self.folder / f"{name}_labels.png")
        mixed = figures.overlay(image, labels, self.palette, self.share)
        Image.fromarray(mixed).save(self.folder / f"{name}_overlay.png")
        self._legend(name, np.bincount(labels.ravel(), minlength=IGNORE))

    def video(self, path: Path, name: str, console: Console) -> None:
        """Processes a video frame by frame, holding one frame in memory at a time."""
        source = videos.Source(path)
        maps = self.folder / f"{name}_labels"
        maps.mkdir(exist_ok=True)
        counts = np.zeros(IGNORE, np.int64)

        def mixed() -> Iterator[np.ndarray]:
            frames = track(source, path.name, source.length, console=console)
            for number, image in enumerate(frames):
                labels = self._labels(image)
                counts[:] += np.bincount(labels.ravel(), minlength=IGNORE)
                self._map(labels).save(maps / f"{number:06}.png")
                yield figures.overlay(image, labels, self.palette, self.share)

        videos.write(self.folder / f"{name}_overlay{path.suffix}", mixed(), source.rate)
        self._legend(name, counts)

    def _labels(self, image: np.ndarray) -> np.ndarray:
        return self.subject.view.classes(self.subject.network, image).cpu().numpy()

    def _map(self, labels: np.ndarray) -> Image.Image:
        if self.dataset_values:
            return Image.fromarray(self.subject.labelling.encode(labels))
        return figures.label_map(labels, self.palette)

    def _legend(self, name: str, counts: np.ndarray) -> None:
        """Writes a legend of the classes found, most frequent first."""
        classes = self.subject.labelling.classes
        shares = counts / counts.sum()
        found = [k for k in np.argsort(-counts, kind="stable")[: len(classes)] if counts[k]]
        drawn = figures.legend([classes[k] for k in found], [float(shares[k]) for k in found])
        drawn.save(self.folder / f"{name}_legend.png")


if __name__ == "__main__":
    sys.exit(main())
