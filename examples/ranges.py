"""Valid ranges of numeric settings, declared with their defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """low, high: inclusive bounds. above, below: exclusive bounds."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.below is not None:
            return f"{self.low:g} to below {self.below:g}"
        if self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        if self.above == 0 or self.low == 1:
            return "positive"
        return "a finite number" if self.low is None else f"{self.low:g} or more"


def number(default: float | None, **ends: float) -> Any:
    """A dataclass field for a number with a valid range; `ends` are the arguments of Range.

    Example:
        >>> @dataclass
        ... class Train:
        ...     batch: int = number(16, low=1)
        >>> check("train", Train(0))
        Traceback (most recent call last):
        ValueError: train.batch: must be positive, got 0
    """
    return field(default=default, metadata=within(**ends))


def within(**ends: float) -> dict[str, Range]:
    """The metadata of such a field; also for lists of numbers."""
    return {"range": Range(**ends)}


def check(section: str, settings: Any) -> None:
    """Raises ValueError for the first setting out of its range; the message starts with the section
    (none if "") and the setting."""
    for each in fields(settings):
        name, value = f"{section}.{each.name}".lstrip("."), getattr(settings, each.name)
        if is_dataclass(value):
            check(name, value)
        elif isinstance(value, list) and value and is_dataclass(value[0]):
            for place, one in enumerate(value):
                check(f"{name}[{place}]", one)
        elif allowed := each.metadata.get("range"):
            values = value if isinstance(value, list) else [value]
            if any(one is not None and one not in allowed for one in values):
                raise ValueError(f"{name}: must be {allowed}, got {value}")
