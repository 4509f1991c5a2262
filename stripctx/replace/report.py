"""What `fuse` did, and what it did not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Replaced:
    """A module that computes with our functions now. `path` is "" for the network itself."""

    path: str
    name: str
    functions: str

    def __str__(self) -> str:
        return f"{self.path or '(the network)'}: {self.name}, by {self.functions}"


@dataclass(frozen=True)
class Left:
    """A module whose class has a known name, and why it is as it was."""

    path: str
    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.path or '(the network)'}: {self.name}: {self.why}"


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
