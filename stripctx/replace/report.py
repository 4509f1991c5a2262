"""What `fuse` did, and what it did not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class _Module:
    """Where a module is, "" for the network itself, and the name of its class."""

    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path or '(the network)'}: {self.name}"


@dataclass(frozen=True)
class Replaced(_Module):
    """A module that computes with our functions now."""

    functions: str

    def __str__(self) -> str:
        return f"{super().__str__()}, by {self.functions}"


@dataclass(frozen=True)
class Left(_Module):
    """A module whose class has a known name, and why it is as it was."""

    why: str

    def __str__(self) -> str:
        return f"{super().__str__()}: {self.why}"


@dataclass(frozen=True)
class Report:
    """What `fuse` replaced and what it left; printed, one line a module.

    Modules whose class has no known name are in neither.
    """

    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        lines = [f"replaced {one}" for one in self.replaced]
        lines += [f"left     {one}" for one in self.left]
        return "\n".join(lines) or "nothing that fuse knows"
