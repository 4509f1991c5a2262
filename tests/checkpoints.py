"""State dictionaries in the layouts of published checkpoints, by renaming our own keys."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def randomise(module: nn.Module) -> nn.Module:
    """Gives every entry of the state distinct values, so that exchanged entries are detected."""
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif value.is_floating_point() and value.dim() == 1:
            value.normal_(0.5, 0.3)
    return module


def renamed(state: State, *rules: tuple[str, str]) -> State:
    """Renames the keys of a state; for each key the first rule whose pattern matches applies."""
    result = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            if re.match(pattern, key):
                key = re.sub(pattern, replacement, key, count=1)
                break
        result[key] = value
    return result


def same_state(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


TO_TORCHVISION = ((r"stem\.0\.", "conv1."), (r"stem\.1\.", "bn1."))
TO_ENCODING = ((r"stem\.7\.", "bn1."), (r"stem\.", "conv1."))
TO_SEMSEG_IMAGENET = (
    *TO_TORCHVISION,
    (r"stem\.3\.", "conv2."),
    (r"stem\.4\.", "bn2."),
    (r"stem\.6\.", "conv3."),
    (r"stem\.7\.", "bn3."),
)
TO_SEMSEG = ((r"stem\.", "layer0."),)
# Backbone key names in PyTorch-Encoding and SPNet.
BACKBONE_OF_ENCODING = (
    (r"backbone\.stem\.7\.", "pretrained.bn1."),
    (r"backbone\.stem\.", "pretrained.conv1."),
    (r"backbone\.", "pretrained."),
)
