"""Argument parsing shared by the commands; errors are printed as one line."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NoReturn, TypeVar

from examples.data.files import check_writable


class ArgumentError(ValueError):
    """An invalid argument; the message starts with its name."""


class Parser(argparse.ArgumentParser):
    """Reports errors in one line, with exit status 2; `--help` prints the usage."""

    def error(self, message: str) -> NoReturn:
        line = message.removeprefix("argument ")
        self.exit(2, f"{self.prog}: {line}\n")


def count(text: str) -> int:
    """Parses a positive integer."""
    return _number(text, int, "a positive whole number", least=1)


def natural(text: str) -> int:
    """Parses a non-negative integer."""
    return _number(text, int, "a whole number, 0 or more", least=0)


def positive(text: str) -> float:
    return _number(text, float, "a positive number", least=math.ulp(0.0))


def not_negative(text: str) -> float:
    return _number(text, float, "a number, 0 or more", least=0)


Number = TypeVar("Number", int, float)


def _number(text: str, kind: type[Number], words: str, *, least: float) -> Number:
    try:
        value = kind(text)
        good = value >= least and math.isfinite(value)
    except (ValueError, OverflowError):
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"must be {words}, got {text}")
    return value


def check_output(folder: Path) -> None:
    """Raises ArgumentError if the folder is not writable; called before anything is computed."""
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(0, "it is a file")
        check_writable(folder)
    except OSError as error:
        raise ArgumentError(f"--output: {folder} cannot be written ({error.strerror})") from None
