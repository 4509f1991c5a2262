"""Argument parsing shared by the commands: errors are one line."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NoReturn

from examples.data.files import check_writable


class ArgumentError(ValueError):
    """An invalid argument; the message starts with its name."""


class Parser(argparse.ArgumentParser):
    """Reports errors in one line, with exit status 2; `--help` prints the usage."""

    def error(self, message: str) -> NoReturn:
        line = message.removeprefix("argument ")
        self.exit(2, f"{self.prog}: {line}\n")


def count(text: str) -> int:
    """A positive whole number."""
    return int(_positive(text, int, "a positive whole number"))


def positive(text: str) -> float:
    return _positive(text, float, "a positive number")


def _positive(text: str, kind: type[float], words: str) -> float:
    try:
        value = kind(text)
        good = value > 0 and math.isfinite(value)
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"must be {words}, got {text}")
    return value


def check_output(folder: Path) -> None:
    """Raises ArgumentError if the folder is not writable, before anything is computed."""
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(0, "it is a file")
        check_writable(folder)
    except OSError as error:
        raise ArgumentError(f"--output: {folder} cannot be written ({error.strerror})") from None
