"""The report of `fuse`."""

from __future__ import annotations

from dataclasses import dataclass

from stripctx.fusion.cost import Convolution


@dataclass(frozen=True)
class _Module:
    """A module's path, "" for the network itself, and the name of its class."""

    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path or '(the network)'}: {self.name}"


@dataclass(frozen=True)
class Replaced(_Module):
    """A module that was replaced.

    Attributes:
        path: of the module in the network, "" for the network itself.
        name: of its class, followed by the project if it is a known context module.
        functions: the functions of stripctx that it uses now.
    """

    functions: str

    def __str__(self) -> str:
        return f"{super().__str__()}, by {self.functions}"


@dataclass(frozen=True)
class Left(_Module):
    """A module that was left unchanged.

    Attributes:
        path: of the module in the network, "" for the network itself.
        name: of its class.
        why: the reason.
    """

    why: str

    def __str__(self) -> str:
        return f"{super().__str__()}: {self.why}"


@dataclass(frozen=True)
class Report:
    """What `fuse` replaced and what it left. Prints one line per module.

    With an example, also one line per convolution over interpolated maps: multiply-adds before and
    after, and bytes of the concatenation before and of the taps after; then the total.

    Modules that neither interpolate nor have a known class name are not listed.

    Attributes:
        replaced: the modules that were replaced.
        left: the modules that were left unchanged, and why.
        convolutions: those over interpolated maps; empty without an example.

    Examples:
        >>> from stripctx import fuse
        >>> report = fuse(torch.nn.Conv2d(3, 8, 3))
        >>> len(report.replaced), len(report.left), report.products
        (0, 0, (0, 0))
    """

    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]
    convolutions: tuple[Convolution, ...] = ()

    @property
    def products(self) -> tuple[int, int]:
        """Multiply-adds of all convolutions over interpolated maps, before and after."""
        return (
            sum(one.products_before for one in self.convolutions),
            sum(one.products_after for one in self.convolutions),
        )

    def __str__(self) -> str:
        lines = [f"replaced {one}" for one in self.replaced]
        lines += [f"left     {one}" for one in self.left]
        for one in self.convolutions:
            lines.append(
                f"conv2d   {one.path or '(the network)'}: {one.form}, "
                f"{_count(one.products_before)} -> {_count(one.products_after)} products, "
                f"{_count(one.bytes_before)} -> {_count(one.bytes_after)} bytes"
            )
        if self.convolutions:
            before, after = self.products
            lines.append(
                f"together {_count(before)} -> {_count(after)} products in "
                f"{len(self.convolutions)} convolutions over interpolated maps"
            )
        return "\n".join(lines) or "nothing to replace"


def _count(number: float) -> str:
    """The number with three digits and a unit."""
    for unit in ("", " k", " M", " G", " T"):
        if number < 1000 or unit == " T":
            return f"{number:.3g}{unit}"
        number /= 1000
    raise AssertionError
