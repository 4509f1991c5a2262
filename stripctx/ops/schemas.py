"""The operators' schemas, read from csrc/<family>/schemas.hpp. The library is compiled with the
same text, for use without Python."""

from __future__ import annotations

import ast
import os
from typing import Any

import torch

from stripctx import _compat
from stripctx.extension import locate

LIBRARY = torch.library.Library("stripctx", "FRAGMENT")
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
FAMILIES = ("strip", "pyramid", "upsample", "height", "encoding", "labels")


def read() -> dict[str, str]:
    """Every schema by its operator's name, from the array of string literals in a header."""
    found = {}
    for family in FAMILIES:
        path = os.path.join(locate.source_root(), "csrc", family, "schemas.hpp")
        with open(path) as header:
            array = header.read().partition("= {")[2].partition("};")[0]
        for schema in ast.literal_eval(f"[{array}]"):
            found[schema.partition("(")[0]] = schema
    return found


SCHEMAS = read()


def find(name: str) -> Any:
    base, _, overload = name.partition(".")
    packet = getattr(torch.ops.stripctx, base, None)
    return getattr(packet, overload or "default", None)


def declare(name: str) -> Any:
    """Returns the operator of that name, such as "pyramid_taps_add.out", and defines it unless a
    loaded library already has."""
    schema = SCHEMAS[name]
    operator = find(name)
    if operator is None:
        LIBRARY.define(schema)
        operator = find(name)
    elif not _compat.has_schema(operator, f"stripctx::{schema}"):
        raise ImportError(
            f"stripctx: a library that was loaded before defines {operator._schema}, which this "
            f"version of the package knows as stripctx::{schema}; load the library that belongs "
            "to this version, or none"
        )
    _compat.tag(operator, TAGS)
    return operator
