"""Malformed calls of every operator of `torch.ops.stripctx`: `python tests/fuzz.py SEED CALLS`.

A call starts from valid arguments and invalidates up to three of them: another rank, size, dtype,
device or layout, None, lists that are too short or too long, integers from -1 to 2**63. It must
raise one of ERRORS or return the result of the reference. The fake kernels, which contain the same
checks, predict whether a call is valid and how large its results are.

Each call is printed before it is made, so that after a crash the last line names the call. The
final line counts accepted and rejected calls by operator, as JSON.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from operator_checks import DEVICE, relative_error, tuple_of
from torch import Tensor

from stripctx import extension
from stripctx.reference import encoding, height, labels, pyramid, strip, upsample

FAMILIES = (encoding, height, labels, pyramid, strip, upsample)
ERRORS = (ValueError, RuntimeError, TypeError, NotImplementedError, MemoryError)
LARGEST = 2**20  # maximum number of elements in a legal call
ENDLESS = 2**36  # more elements than any allocation can hold
MEMORY = 16 * 2**30  # address space limit of the process; larger allocations fail
INTEGERS = (-(2**62), -1, 0, 1, 2, 3, 17, 2**31 - 1, 2**31, 2**32 + 3, 2**62, 2**63 - 1, 2**63)
DIMENSIONS = (0, 1, 2, 3, 4, 5, 7, 33)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LABELS = (torch.uint8, torch.int32, torch.int64)
FOREIGN = (torch.int32, torch.bool, torch.complex64, torch.uint8, torch.float8_e5m2)
# Absolute bounds for noise that cancels; products of float32 may use tf32.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-2, torch.float16: 0.05, torch.bfloat16: 0.3}

N, C, H, W, K, L = 2, 3, 4, 5, 6, 3
MAP = (N, C, H, W)
ROWS, COLS = (N, C, H, 1), (N, C, 1, W)
SHAPES = {"rows": ROWS, "cols": COLS, "grad_rows": ROWS, "grad_cols": COLS}
SHAPES |= {"bias": (C,), "gate": (N, C), "codewords": (K, C), "scale": (K,)}
INTEGER_LISTS = {
    "bins": [1, 1, 2, 3],
    "sizes": [1, 1, 2, 3],
    "size": [H, W],
    "kernel": [3, 1],
    "padding": [1, 0],
    "dilation": [1, 1],
    "modes": [1, 2],
}
# Names with another shape in one operator.
EXCEPTIONS: dict[tuple[str, str], Any] = {
    ("encode_backward", "grad"): (N, K, C),
    ("row_gate", "logits"): (N, C, L),
    ("row_gate_backward", "logits"): (N, C, L),
    ("strip_conv", "weight"): (K, C, 1, 1),
    ("pyramid_concat_backward", "sizes"): [1, 1, 2, 2, 3, 1],
    ("pyramid_taps_add", "taps"): 3 * C,
    ("upsample_argmax", "size"): [6, 9],
    ("upsample_softmax_max", "size"): [6, 9],
}
# In the labels family, values other than logits have the dtype of the sums.
IMAGE = (N, 6, 9)
WIDE = {
    ("upsample_cross_entropy", "weight"): (C,),
    ("upsample_cross_entropy_backward", "weight"): (C,),
    ("upsample_cross_entropy_backward", "grad"): IMAGE,
    ("upsample_cross_entropy_backward", "log_sums"): IMAGE,
    ("upsample_dice_backward", "grad"): (N, 3, C),
    ("upsample_dice_backward", "log_sums"): IMAGE,
    ("upsample_binary_cross_entropy_backward", "grad"): (N, C, 6, 9),
}


# Internal operators: uninitialised memory, and an operator that writes into an argument. The latter
# is tested with invalid arguments in tests/test_upsample.py.
INTERNAL = {"stripctx::map_memory", "stripctx::pyramid_taps_add.out"}


def operators() -> list[Any]:
    """All operators of the library, in a fixed order; new ones are included automatically."""
    names = set(torch._C._dispatch_get_all_op_names()) - INTERNAL
    names = sorted(name for name in names if name.startswith("stripctx::"))
    return [getattr(torch.ops.stripctx, name.partition("::")[2]).default for name in names]


def coin() -> bool:
    return random.random() < 0.5


def values(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.randn(tuple(shape)).to(DEVICE, dtype)


def valid(operator: Any, dtype: torch.dtype) -> list[Any]:
    """Arguments by type and name; those of operators unknown to this file may be invalid."""
    name = operator._schema.name.partition("::")[2]
    return [argument_for(name, a.name, str(a.type), dtype) for a in operator._schema.arguments]


def argument_for(operator: str, name: str, kind: str, dtype: torch.dtype) -> Any:
    special = EXCEPTIONS.get((operator, name))
    wide = WIDE.get((operator, name))
    if kind.startswith("Optional") and coin():
        return None
    if wide:
        return values(wide, dtype if dtype is torch.float64 else torch.float32)
    if operator.startswith("upsample_") and name in ("target", "weight", "pos_weight"):
        if "binary" in operator:
            return values((N, C, 6, 9), dtype)
        return torch.randint(-1, C + 1, IMAGE, device=DEVICE).to(random.choice(LABELS))
    if kind == "float":
        return random.choice((0.0, 0.1))
    if kind == "Tensor":
        return values(special or SHAPES.get(name, MAP), dtype)
    if kind == "List[Tensor]":
        shapes = [(N, special or C, 1, 1), (N, special or C, 2, 3)]
        if name == "indices":
            return [torch.randint(-1, H * W + 1, shape, device=DEVICE) for shape in shapes]
        return [values(shape, dtype) for shape in shapes]
    if kind in ("List[int]", "List[SymInt]"):
        return list(special or INTEGER_LISTS.get(name, [1, 2]))
    if kind == "List[float]":
        return [0.0, 0.0, 0.0, 0.125]
    if kind in ("int", "SymInt"):
        return {"height": H, "width": W, "bytes": random.choice((1, 4, 8))}.get(name, 2)
    return coin()


def resized(value: Tensor) -> Tensor:
    """Changes the size of a dimension, or adds or removes one."""
    shape = list(value.shape)
    choice = random.randrange(5)
    if choice == 0:
        shape.insert(random.randint(0, len(shape)), random.choice((0, 1, 2)))
    elif choice == 1 and shape:
        shape.pop(random.randrange(len(shape)))
    elif shape:
        shape[random.randrange(len(shape))] = random.choice(DIMENSIONS)
    if value.dtype in DTYPES:
        return values(shape, value.dtype)
    return torch.randint(-5, 40, shape, device=DEVICE).to(value.dtype)


def enormous(value: Tensor) -> Tensor:
    """Huge dimensions over few elements or none: an expanded view, or a map with no images."""
    if not value.dim():
        return value
    shape = list(value.shape)
    shape[random.randrange(len(shape))] = random.choice((2**20, 2**31, 2**32 + 1, 2**40))
    if coin():
        shape[random.randrange(len(shape))] = 0
        return torch.empty(shape, dtype=value.dtype, device=DEVICE)
    return torch.zeros([1] * len(shape), dtype=value.dtype, device=DEVICE).expand(shape)


def laid_out(value: Tensor) -> Tensor:
    """The same values with other strides."""
    choice = random.randrange(5)
    if choice == 0 and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    if choice == 1 and value.dim() > 1:
        return value.transpose(0, -1).contiguous().transpose(0, -1)
    if choice == 2 and value.dim():
        return torch.stack([value, value], -1)[..., 0]
    if choice == 3 and value.dim() and value.numel():
        return value[:1].expand(value.shape)
    return torch._neg_view(-value) if value.dtype in DTYPES else value


def unusual(value: Tensor) -> Tensor:
    """Another dtype, sparse or MKL-DNN layout, or another device."""
    if coin():
        return value.to(random.choice((*DTYPES, torch.int64, *FOREIGN)))
    if coin():
        return value.to_sparse()
    if coin() and value.dtype is torch.float32 and DEVICE.type == "cpu":
        return value.to_mkldnn()
    return value.to("cpu" if DEVICE.type == "cuda" else "meta")


def poisoned(value: Tensor) -> Tensor:
    """Sets one element to a non-finite number, or to an index out of range."""
    numbers = (float("nan"), float("inf"), -float("inf"))
    indices = (-(2**63), -1, 2**31, 2**32, 2**63 - 1)
    if value.numel() and value.dtype in (*DTYPES, torch.int64):
        value = value.clone()
        where = tuple(random.randrange(size) for size in value.shape)
        value[where] = random.choice(indices if value.dtype is torch.int64 else numbers)
    return value


def spoil(value: Any) -> Any:
    if isinstance(value, Tensor):
        return spoil_tensor(value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice(INTEGERS)
    if isinstance(value, float):
        return random.choice((0.0, 1.0, -1.0, 1e-30, 1e30, float("nan"), float("inf")))
    if value is None:
        return value
    items = list(value)
    choice = random.randrange(6)
    if choice == 0:
        return items[: random.randrange(len(items) + 1)]
    if choice == 1:
        return items * random.choice((2, 3, 5))
    if choice == 2:
        return [*items, *items[:1]]
    for _ in range(random.choice((1, 1, 2, 4))):
        if items:
            which = random.randrange(len(items))
            items[which] = spoil(items[which])
    return items


def usual(value: Tensor) -> bool:
    return value.layout is torch.strided and value.device.type == DEVICE.type


def watched(value: Tensor) -> Tensor | None:
    """The tensor with requires_grad, or None."""
    return value.detach().requires_grad_() if value.dtype in DTYPES and coin() else None


SPOILERS = (resized, resized, resized, enormous, laid_out, laid_out, unusual, unusual, poisoned)


def spoil_tensor(value: Tensor) -> Tensor | None:
    if not usual(value) or value.dtype in FOREIGN or max(value.shape, default=0) >= LARGEST:
        return value  # already invalid
    return random.choice((*SPOILERS, watched))(value)


def describe(value: Any) -> str:
    if isinstance(value, Tensor):
        where = f"{value.dtype} {value.device} {value.layout}".replace("torch.", "")
        strides = f"/{value.stride()}" if value.layout is torch.strided else ""
        return f"{tuple(value.shape)}{strides} {where}"
    if isinstance(value, list):
        return "[" + "; ".join(describe(item) for item in value) + "]"
    return str(value)


def tensors(arguments: Sequence[Any]) -> list[Tensor]:
    flat = [item for a in arguments for item in (a if isinstance(a, list) else [a])]
    return [item for item in flat if isinstance(item, Tensor)]


def on(device: str | torch.device, value: Any) -> Any:
    if isinstance(value, list):
        return [on(device, item) for item in value]
    return value.detach().to(device) if isinstance(value, Tensor) else value


def outcome(function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Tensor, ...] | str:
    try:
        return tuple_of(function(*arguments))
    except ERRORS as error:
        return f"{type(error).__name__}: {error}"


def steps(value: Tensor) -> list[int]:
    return [step for step, size in zip(value.stride(), value.shape, strict=True) if size > 1]


def attempt(operator: Any, name: str, arguments: list[Any]) -> bool:
    """Whether the call is accepted; AssertionError if the result or the error is wrong."""
    given = tensors(arguments)
    plain = all(map(usual, given))
    predicted = outcome(operator, [on("meta", a) for a in arguments]) if plain else ""
    elements = 0
    if not isinstance(predicted, str):
        elements = max(t.numel() for t in predicted)
        longest = max(max(t.numel(), *t.shape) for t in (*given, *predicted))
        if longest > LARGEST and (elements < ENDLESS or extension.backend() == "reference"):
            return False  # legal, but too large for a test
    result = outcome(operator, arguments)
    if isinstance(result, str):
        refused = isinstance(predicted, str) or elements >= ENDLESS
        assert refused, f"only the kernel refuses: {result}"
        return False
    if not plain:
        return True
    assert not isinstance(predicted, str), f"only the fake kernel refuses: {predicted}"
    assert elements < ENDLESS, "more than there is memory for"
    reference = next(getattr(family, name) for family in FAMILIES if hasattr(family, name))
    expected = tuple_of(reference(*(on(DEVICE, a) for a in arguments)))
    finite = all(t.isfinite().all() for t in given)
    for value, want, fake in zip(result, expected, predicted, strict=True):
        assert (value.shape, value.dtype) == (want.shape, want.dtype) == (fake.shape, fake.dtype)
        assert not value.numel() or steps(value) == steps(fake), f"{steps(value)}, {steps(fake)}"
        if finite:
            error = relative_error(value, want)
            bound = TOLERANCE.get(value.dtype, 0)
            assert error <= bound, f"relative error {error:.1e} above {bound:.1e}"
    return True


def main(seed: int, calls: int) -> None:
    if DEVICE.type == "cpu":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(2)
    torch.manual_seed(seed)
    random.seed(seed)
    counts: dict[str, Counter[str]] = {}
    known = operators()
    for index in range(calls):
        operator = known[index % len(known)]
        name = operator._schema.name.partition("::")[2]
        arguments = valid(operator, random.choice(DTYPES))
        for _ in range(0 if index < len(known) else random.choice((1, 1, 2, 3))):
            which = random.randrange(len(arguments))
            arguments[which] = spoil(arguments[which])
        print(index, name, "; ".join(map(describe, arguments)), flush=True)
        try:
            accepted = attempt(operator, name, arguments)
            counts.setdefault(name, Counter())["accepted" if accepted else "refused"] += 1
        except AssertionError as error:
            print("BROKEN:", error)
    print(json.dumps(counts))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
