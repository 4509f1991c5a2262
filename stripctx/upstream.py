"""The key layouts of published checkpoints, so that load_state_dict accepts them unchanged.

A module calls `accept(self, *layouts)` in its constructor. When a state_dict is loaded, the first
layout that recognises one of its keys renames the entries by its table, whose keys are relative to
the module. A network renames the prefixes of its children (`pretrained.` to `backbone.`) and each
child renames the rest, so a layout is written once for all networks with such a child. Our own
layout is accepted unchanged, and `strict=True` is respected: entries that no rule matches are
reported.

Wrappers are removed first: {'state_dict': ...} and {'model': ...} around the entries, and `module.`
or `_orig_mod.` in front of every key, as written by data-parallel and compiled networks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "BACKBONE",
    "ENCODING",
    "MMSEG",
    "SEMSEG",
    "TORCHVISION",
    "TRANSFORMERS",
    "Layout",
    "accept",
    "read",
]

# A pattern for the start of a key and its replacement; None drops the entry.
Rule = tuple[str, "str | None"]

_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Layout:
    """The key names of one project. `mark` matches the start of a key that exists in this layout
    but not in ours; the first rule that matches a key applies."""

    name: str
    mark: str
    rules: tuple[Rule, ...]

    def plus(self, *rules: Rule) -> Layout:
        """This layout with further rules, which come first: those of one network's head."""
        return replace(self, rules=(*rules, *self.rules))

    def recognises(self, key: str) -> bool:
        return re.match(self.mark, key) is not None

    def rename(self, key: str) -> str | None:
        for pattern, replacement in self.rules:
            match = re.match(pattern, key)
            if match is not None:
                return (
                    None if replacement is None else match.expand(replacement) + key[match.end() :]
                )
        return key


_CLASSIFIER: Rule = (r"fc\.", None)  # ImageNet's classifier, which segmentation networks lack

# The class weights of a loss that HANet, semseg and SPNet store in the network.
_CRITERION: Rule = (r"criterion\w*\.", None)

# ResNet in the layout of stripctx.models: `stem`, with convolutions at 0, 3 and 6, then layer1 to
# layer4.
BACKBONE = (
    Layout(
        "PyTorch-Encoding and SPNet, deep stem",
        r"conv1\.0\.",
        ((r"conv1\.", "stem."), (r"bn1\.", "stem.7."), _CLASSIFIER),
    ),
    Layout(
        "semseg's ImageNet files, deep stem",
        r"conv3\.",
        (
            (r"conv1\.", "stem.0."),
            (r"bn1\.", "stem.1."),
            (r"conv2\.", "stem.3."),
            (r"bn2\.", "stem.4."),
            (r"conv3\.", "stem.6."),
            (r"bn3\.", "stem.7."),
            _CLASSIFIER,
        ),
    ),
    Layout(
        "torchvision, and everybody else's 7x7 stem",
        r"conv1\.weight",
        ((r"conv1\.", "stem.0."), (r"bn1\.", "stem.1."), _CLASSIFIER),
    ),
    Layout("semseg's and HANet's networks", r"layer0\.", ((r"layer0\.", "stem."), _CLASSIFIER)),
    Layout("mmseg's ImageNet files", r"fc\.", (_CLASSIFIER,)),
)

# Each project's names of the backbone and the auxiliary head; `plus` adds those of a head.
ENCODING = Layout(
    "PyTorch-Encoding and SPNet",
    r"pretrained\.",
    (
        (r"pretrained\.", "backbone."),
        (r"auxlayer\.conv5\.", "aux_head."),
        _CRITERION,
    ),
)
SEMSEG = Layout(
    "semseg and HANet",
    r"layer0\.",
    ((r"(layer[0-4])\.", r"backbone.\1."), (r"(aux|dsn)\.", "aux_head."), _CRITERION),
)
MMSEG = Layout(
    "mmseg",
    r"decode_head\.",
    (
        (r"auxiliary_head\.convs\.0\.conv\.", "aux_head.0."),
        (r"auxiliary_head\.convs\.0\.bn\.", "aux_head.1."),
        (r"auxiliary_head\.conv_seg\.", "aux_head.4."),
    ),
)
TRANSFORMERS = Layout(
    "transformers",
    r"decode_head\.classifier\.",
    (
        (r"auxiliary_head\.convs\.0\.conv\.", "aux_head.0."),
        (r"auxiliary_head\.convs\.0\.batch_norm\.", "aux_head.1."),
        (r"auxiliary_head\.classifier\.", "aux_head.4."),
    ),
)
TORCHVISION = Layout(
    "torchvision",
    r"classifier\.",
    ((r"classifier\.", "head."), (r"aux_classifier\.", "aux_head.")),
)


def accept(module: nn.Module, *layouts: Layout) -> None:
    """Makes `module.load_state_dict` accept these layouts, wrapped or not, in addition to its
    own."""
    module.register_load_state_dict_pre_hook(partial(_translate, layouts))


def read(weights: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Tensor]:
    """The entries of a checkpoint file (read with weights_only) or of a state_dict, unwrapped."""
    if isinstance(weights, (str, os.PathLike)):
        weights = torch.load(weights, map_location="cpu", weights_only=True)
    if not isinstance(weights, Mapping):
        raise ValueError(
            f"read: weights must be a path or hold a state_dict, got {type(weights).__name__}"
        )
    return _unwrap(weights)


def _unwrap(entries: Mapping[str, Any]) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(entries.get(wrapper), Mapping):
            return _unwrap(entries[wrapper])
    for prefix in _PREFIXES:
        if entries and all(key.startswith(prefix) for key in entries):
            return _unwrap({key[len(prefix) :]: value for key, value in entries.items()})
    return dict(entries)


def _translate(
    layouts: tuple[Layout, ...],
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    *_: object,
) -> None:
    """A load_state_dict pre-hook that renames the entries below `prefix` in place. torch passes a
    copy of the caller's dictionary."""
    own = [key for key in state_dict if key.startswith(prefix)]
    entries = _unwrap({key[len(prefix) :]: state_dict.pop(key) for key in own})
    layout = next((one for one in layouts if any(map(one.recognises, entries))), None)
    for key, value in entries.items():
        name = key if layout is None else layout.rename(key)
        if name is not None:
            # both names are present: the second keeps its name and is reported as unexpected
            taken = prefix + name in state_dict
            state_dict[prefix + (key if taken else name)] = value
