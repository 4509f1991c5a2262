"""Draws the figures of the documentation, which are all computed with this package.

python -m docs.draw                       docs/figures/*.svg
python -m docs.draw --to FOLDER encode    one figure into another folder; --format png for viewing
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

from docs.draw import camvid, codes, labels, layers, networks, operators, style, taps

FIGURES: dict[str, Callable[[], style.Page]] = {
    "overview": layers.overview,
    "strip_pooling": layers.strip_pooling,
    "mixed_pooling": layers.mixed_pooling,
    "pyramid_pooling": layers.pyramid_pooling,
    "pyramid_pooling_conv": taps.pyramid_pooling_conv,
    "height_attention": layers.height_attention,
    "encoding_layer": codes.encoding_layer,
    "context_encoding": codes.context_encoding,
    "pyramid": operators.pyramid,
    "upsample": operators.upsample,
    "encoding": codes.encode,
    "labels": labels.labels,
    "networks": networks.networks,
    "camvid": camvid.camvid,
    "camvid_maps": camvid.camvid_maps,
}
FOLDER = Path(__file__).resolve().parents[1] / "figures"


def draw(name: str, folder: Path, suffix: str = "svg") -> Path:
    path = folder / f"{name}.{suffix}"
    with mpl.rc_context(style.STYLE):
        FIGURES[name]().save(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(prog="docs.draw", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--to", type=Path, default=FOLDER)
    parser.add_argument("--format", default="svg")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    for name in options.names or FIGURES:
        path = draw(name, options.to, options.format)
        print(f"{path.name}: {path.stat().st_size / 1000:.1f} kB")


if __name__ == "__main__":
    main()
