"""Parses YAML by the declared types of the settings: text stays as it was written.

YAML libraries read the names `on`, `off`, `yes` and `no` as booleans, 007 as 7, and 2024-01-01 as
a date. Classes and folders may have such names.
"""

from __future__ import annotations

import re
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode


class _Loader(yaml.SafeLoader):
    """For settings that are not text: no dates, and 1e-4 is a number."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, found) for tag, found in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse(text: str, kind: Any) -> Any:
    """Parses the text as a value of this type.

    Raises:
        yaml.YAMLError: it is not valid YAML, or has a duplicate key.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _value(loader, node, kind)
    finally:
        loader.dispose()


def parse_change(text: str, kind: Any) -> Any:
    """Parses the value of `setting=value` on a command line, where text needs no quotes."""
    if kind is str and not re.fullmatch(r"'.*'|\".*\"", text, re.DOTALL):
        return text
    return parse(text, kind)


def declared(whole: type, setting: str) -> Any:
    """The declared type of a setting such as `network.options.bins` or `optimizer.groups[0].match`;
    Any if none is declared."""
    kind: Any = whole
    for name in re.findall(r"[^.\[\]]+", setting):
        if is_dataclass(kind):
            kind = get_type_hints(kind).get(name, Any)
        elif get_origin(kind) in (list, dict):
            kind = get_args(kind)[-1]
        else:
            return Any
    return kind


def _value(loader: _Loader, node: Node, kind: Any) -> Any:
    if isinstance(node, ScalarNode) and kind is str:
        return node.value
    if isinstance(node, SequenceNode) and get_origin(kind) is list:
        return [_value(loader, each, get_args(kind)[0]) for each in node.value]
    if isinstance(node, MappingNode):
        return _mapping(loader, node, kind)
    return loader.construct_object(node, deep=True)


def _mapping(loader: _Loader, node: MappingNode, kind: Any) -> dict[Any, Any]:
    names = get_type_hints(kind) if is_dataclass(kind) else {}
    of_values = get_args(kind)[1] if get_origin(kind) is dict else Any
    as_text = bool(names) or (get_origin(kind) is dict and get_args(kind)[0] is str)
    loader.flatten_mapping(node)
    found: dict[Any, Any] = {}
    for key, value in node.value:
        name = key.value if as_text else loader.construct_object(key, deep=True)
        if name in found:
            raise yaml.constructor.ConstructorError(
                None, None, f"{name} occurs twice", key.start_mark
            )
        found[name] = _value(loader, value, names.get(name, of_values))
    return found
