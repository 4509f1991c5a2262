"""`python -m stripctx` reports what is installed, which kernels run and why; `build` compiles
them."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable

import torch

from . import __version__
from .extension import UnavailableError, architectures, build, loader, locate, toolchain


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stripctx", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("build", help="compile the kernels now and load them")
    command.add_argument("--device", choices=("cpu", "cuda", "all"), default="all")
    arguments = parser.parse_args()
    return build_ahead(arguments.device) if arguments.command == "build" else describe()


def build_ahead(device: str) -> int:
    """Returns 0 if all requested libraries load; `all` excludes CUDA if torch has none."""
    names = [device] if device != "all" else ["cpu", *["cuda"] * (torch.version.cuda is not None)]
    failed = False
    for name in names:
        if name == "cuda" and torch.version.cuda is None:
            print("cuda: not built: this torch is built without CUDA", file=sys.stderr)
            failed = True
            continue
        result = loader.load_library(name, retry=True)
        failed = failed or not result.loaded
        print(f"{name}: {result}", file=sys.stdout if result.loaded else sys.stderr)
    return int(failed)


def describe() -> int:
    found = loader.status()
    rows = [("stripctx", f"{__version__} in {locate.PACKAGE}"), ("backend", found.backend)]
    rows += [(name, str(library)) for name, library in found.libraries.items()]
    if not found.libraries:
        rows.append(("kernels", "reference kernels in PyTorch, on every device"))
    rows += [
        ("other devices", "reference kernels in PyTorch"),
        ("python", platform.python_version()),
        ("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"),
        ("cpu", torch.backends.cpu.get_cpu_capability()),
        ("cache", locate.cache_root()),
        ("compiler", attempt(lambda: " ".join(toolchain.cxx().command))),
        ("nvcc", attempt(nvcc)),
        ("architectures", attempt(lambda: " ".join(architectures.wanted()[0]))),
    ]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")
    return 0


def nvcc() -> str:
    kit = toolchain.toolkit(build.torch_cuda())
    return f"{kit.version} in {kit.root}"


def attempt(answer: Callable[[], str]) -> str:
    try:
        return answer()
    except UnavailableError as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
