"""Exports a network for deployment:

    python examples/export.py runs/camvid/best.pt --size 720 960 --labels
    python examples/export.py pspnet --classes 19 --backbone resnet50 --formats onnx

writes NAME.onnx, for any batch and image size; NAME.pt2, by torch.export, for the given batch and
image size; and NAME.aoti.pt2, an AOTInductor package of the latter. Each is run, compared with the
network and timed. The output is the logits (N, K, H, W), or with --labels the label map (N, H, W).

Exit status: 0; 1 if the results of a file differ from the network's; 2 for an invalid argument,
which the message names.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from examples.training import checkpoint  # noqa: E402
from examples.training.checkpoint import CheckpointError  # noqa: E402
from stripctx import models  # noqa: E402

FORMATS = ("onnx", "pt2", "aoti")
TOLERANCE = 1e-4  # of the largest logit
DIFFERENT = 1e-3  # of the pixels may have another label: where two logits are all but equal
Run = Callable[[Tensor], Tensor]


class Output(nn.Module):
    """A network that returns one tensor."""

    def __init__(self, network: models.SegmentationNetwork, labels: bool) -> None:
        super().__init__()
        self.network = network
        self.labels = labels

    def forward(self, image: Tensor) -> Tensor:
        return self.network.predict(image) if self.labels else self.network(image)["out"]


def main(given: list[str] | None = None) -> int:
    options = parse(given)
    try:
        name, network = load(options)
        options.output.mkdir(parents=True, exist_ok=True)
        image = torch.randn(options.batch, 3, *options.size)
        module = Output(network, options.labels).eval()
        with torch.no_grad():
            runs = {
                one: export(one, module, image, options.output / name) for one in options.formats
            }
            return report(module, image, runs)
    except (CheckpointError, ValueError, OSError, ImportError) as refusal:
        print(f"export: {refusal}", file=sys.stderr)
        return 2


def parse(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("network", help="a checkpoint of train.py, or the name of a network")
    parser.add_argument("--classes", type=int, default=19, help="of a network by name")
    parser.add_argument("--backbone", default="resnet50", help="of a network by name")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--labels", action="store_true", help="label maps instead of logits")
    parser.add_argument("--output", type=Path, default=Path("exported"))
    return parser.parse_args(given)


def load(options: argparse.Namespace) -> tuple[str, models.SegmentationNetwork]:
    """The network, and the base name of its files."""
    if options.network in models.available():
        network = models.create(
            options.network, num_classes=options.classes, backbone=options.backbone
        )
        name = options.network
    else:
        path = Path(options.network)
        network, name = checkpoint.load_network(path, torch.device("cpu")).network, path.stem
    if not isinstance(network, models.SegmentationNetwork):
        raise ValueError(f"network: must segment, but {name} classifies images")
    return name, network.eval()


def export(form: str, module: nn.Module, image: Tensor, path: Path) -> Run:
    """Writes a file and returns a function that runs it."""
    if form == "onnx":
        import onnxruntime

        # tracing would specialise a size of 1
        example = image if image.size(0) > 1 else image.expand(2, -1, -1, -1).contiguous()
        sizes = {dim: torch.export.Dim.DYNAMIC for dim in (0, 2, 3)}
        file = path.with_suffix(".onnx")
        torch.onnx.export(
            module, (example,), str(file), dynamo=True, verbose=False, dynamic_shapes=(sizes,)
        )
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])
    program = torch.export.export(module, (image,))
    if form == "pt2":
        file = path.with_suffix(".pt2")
        torch.export.save(program, file)
        return torch.export.load(file).module()
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    package = aoti_compile_and_package(program, package_path=str(path.with_suffix(".aoti.pt2")))
    return aoti_load_package(package)


def report(module: nn.Module, image: Tensor, runs: dict[str, Run]) -> int:
    """Prints differences and times; returns 1 if a difference is too large."""
    want, status = module(image), 0
    table = Table("form", "difference", "milliseconds", "times the network")
    base = milliseconds(module, image)
    table.add_row("network", "", f"{base:.1f}", "1.00")
    for form, run in runs.items():
        got = run(image)
        if want.is_floating_point():
            difference = float((got - want).abs().max() / want.abs().max())
            fits = difference <= TOLERANCE
        else:
            difference = float((got != want).double().mean())
            fits = difference <= DIFFERENT
        status = status if fits else 1
        took = milliseconds(run, image)
        said = f"{difference:.1e}" if fits else f"[red]{difference:.1e}[/]"
        table.add_row(form, said, f"{took:.1f}", f"{base / took:.2f}")
    Console().print(table)
    return status


def milliseconds(run: Run, image: Tensor, rounds: int = 5) -> float:
    """The minimum over some rounds, in milliseconds."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run(image)
        times.append(time.perf_counter() - begin)
    return 1000 * min(times)


if __name__ == "__main__":
    sys.exit(main())
