"""The recorded results of the speed model, benchmarks/results/model.json: one row per operator,
shape, dtype and layout, and the digests of the modelled sources."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import toolkit

PATH = toolkit.REPOSITORY / "benchmarks" / "results" / "model.json"
TOLERANCE = 2  # allowed difference between compilers, in per cent of a copy

Rows = Sequence[Sequence[str]]


def read(path: Path = PATH) -> dict[str, Any]:
    if not path.exists():
        return {"code": {}, "rows": []}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def write(
    path: Path,
    head: Sequence[str],
    rows: Rows,
    sources: Mapping[str, Collection[Path]],
    order: Sequence[str],
) -> None:
    """Replaces the rows of the operators in `sources`; keeps those of other operators."""
    earlier = read(path)
    merged = [one for one in earlier["rows"] if one[0] not in sources] + [*rows]
    merged.sort(key=lambda one: order.index(one[0]))
    code: dict[str, dict[str, str]] = earlier["code"]
    for operator, files in sources.items():
        names = {str(file.relative_to(toolkit.REPOSITORY)): file for file in files}
        code[operator] = {name: toolkit.code_of(names[name]) for name in sorted(names)}
    parts = [f'{{"model": {json.dumps({"chip": "H100", "head": list(head)})},\n"code": {{\n']
    parts.append(",\n".join(f"{json.dumps(o)}: {json.dumps(code[o])}" for o in order if o in code))
    parts.append('\n},\n"rows": [\n' + ",\n".join(map(json.dumps, merged)) + "\n]}\n")
    path.write_text("".join(parts))


def changed(recorded: Mapping[str, Any]) -> list[str]:
    """Operators whose sources differ from those of the record."""
    return [
        operator
        for operator, sources in recorded["code"].items()
        if any(toolkit.code_of(toolkit.REPOSITORY / name) != code for name, code in sources.items())
    ]


def fallen(recorded: Rows, rows: Rows, column: int) -> list[str]:
    """Rows whose share of a copy, such as "57%" in `column`, is lower than recorded."""

    def share(row: Sequence[str]) -> int:
        return int(row[column].rstrip("%"))

    before = {tuple(row[:4]): row for row in recorded}
    return [
        f"{' '.join(row[:4])}: {row[column]} of a copy, {earlier[column]} on record"
        for row in rows
        if (earlier := before.get(tuple(row[:4]))) and share(row) < share(earlier) - TOLERANCE
    ]
