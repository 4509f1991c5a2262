"""A network in plain PyTorch before and after `stripctx.fuse`: the decoder of SegFormer (Xie et
al., NeurIPS 2021) on a small convolutional backbone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import stripctx
from examples import figures
from examples.demonstration.measure import Measured, measure

if TYPE_CHECKING:
    from examples.demonstration.figure import Page

BOUND = 1e-4  # bound of max |fused - own| / max |own|, both in float32
BARS, GAP = 0.55, 0.5  # inches
WIDTHS = (32, 64, 160, 256)  # channels of the stages, as in SegFormer-B0


class Decoder(nn.Module):
    """Projects four maps, at 1/4 to 1/32 of the image size, to `width` channels, interpolates them
    to the size of the first, concatenates and convolves them.

    Shape:
        (N, 3, H, W) to logits (N, K, H, W).
    """

    def __init__(self, num_classes: int, width: int = 256) -> None:
        super().__init__()
        channels = (3, *WIDTHS)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 7 if a == 3 else 3, 4 if a == 3 else 2, 3 if a == 3 else 1),
                nn.BatchNorm2d(b),
                nn.ReLU(inplace=True),
            )
            for a, b in zip(channels, WIDTHS, strict=False)
        )
        self.project = nn.ModuleList(nn.Conv2d(each, width, 1) for each in WIDTHS)
        self.fuse = nn.Conv2d(4 * width, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        maps, x = [], image
        for stage, project in zip(self.stages, self.project, strict=True):
            x = stage(x)
            maps.append(project(x))
        size = maps[0].shape[2:]
        large = [F.interpolate(each, size, mode="bilinear", align_corners=False) for each in maps]
        y = self.norm(self.fuse(torch.cat(large, dim=1))).relu()
        return F.interpolate(self.classify(y), image.shape[2:], mode="bilinear")


@dataclass
class Outcome:
    """error: relative, between the logits of both. Times and peak memory of inference."""

    error: float
    found: Measured
    products: tuple[int, int]

    @property
    def agrees(self) -> bool:
        return self.error <= BOUND


def before_and_after(
    console: Console, image: Tensor, num_classes: int, width: int = 256
) -> Outcome:
    """Fuses a copy of the network with the same parameters; prints the report and the gain."""
    own, image = Decoder(num_classes, width).eval(), image.contiguous()
    parameters = list(own.parameters())
    fused = copy.deepcopy(own, {id(each): each for each in parameters})
    report = stripctx.fuse(fused, image)
    console.print("[bold]fuse[/], on a network in plain PyTorch with SegFormer's decoder:")
    console.print(str(report), highlight=False, markup=False, soft_wrap=True)
    with torch.no_grad():
        expected = own(image)
        error = ((fused(image) - expected).abs().max() / expected.abs().max()).item()
    candidates = {"fused": fused, "eager": own}
    with console.status("measuring the network before and after"):
        forward = measure(candidates, image, parameters, backward=False)
        both = measure(candidates, image, parameters, backward=True)
        losses = loss_of_small_logits(expected, image)
    shape = " x ".join(map(str, image.shape))
    table = Table(title=f"The network on {shape}, medians", title_justify="left")
    table.add_column("")
    for heading in ("inference", "peak memory", "forward + backward", "peak memory"):
        table.add_column(heading, justify="right")
    for name, label in (("eager", "as it was"), ("fused", "fused")):
        cells = []
        for found in (forward, both):
            cells += [f"{found.median(name) * 1e3:.1f} ms", f"{found.peaks[name] / 2**20:.1f} MiB"]
        table.add_row(label, *cells)
    for name, label in (
        ("eager", "its loss, of wide logits"),
        ("fused", "its loss, of small ones"),
    ):
        time, peak = losses.median(name) * 1e3, losses.peaks[name] / 2**20
        table.add_row(label, "", "", f"{time:.1f} ms", f"{peak:.1f} MiB")
    console.print(table)
    outcome = Outcome(error, forward, report.products)
    verdict = "[green]agree[/]" if outcome.agrees else "[bold red]DIFFER[/]"
    console.print(f"Their logits {verdict}: at most {error:.0e} apart (bound {BOUND:.0e}).")
    return outcome


def loss_of_small_logits(logits: Tensor, image: Tensor) -> Measured:
    """Cross-entropy of logits at 1/4 of the image's size, interpolated before or within the
    loss."""
    small = F.interpolate(logits, scale_factor=0.25, mode="nearest")
    target = torch.randint(0, logits.size(1), (image.size(0), *image.shape[2:]))

    def wide(z: Tensor) -> Tensor:
        up = F.interpolate(z, target.shape[1:], mode="bilinear", align_corners=False)
        return F.cross_entropy(up, target)

    def fused(z: Tensor) -> Tensor:
        return stripctx.functional.upsample_cross_entropy(z, target, align_corners=False)

    return measure({"fused": fused, "eager": wide}, small, [], backward=True)


def draw(page: Page, left: float, top: float, width: float, outcome: Outcome) -> None:
    """Draws two groups of bars below `top`."""
    before, after = (f"{count / 1e9:.2g} G" for count in outcome.products)
    half, indent = (width - GAP) / 2, 1.0
    times = {name: outcome.found.median(name) * 1e3 for name in outcome.found.times}
    peaks = {name: peak / 2**20 for name, peak in outcome.found.peaks.items()}
    title = f"fuse on SegFormer's decoder: {before} products to {after}"
    figures.bars(page.axes(left + indent, top, half - indent, BARS), times, "ms", title)
    second = left + half + GAP
    figures.bars(
        page.axes(second + indent, top, half - indent, BARS), peaks, "MiB", "Its peak memory"
    )
