"""The private functions of torch used by this package, in one place. tests/test_compat.py checks
that they exist, to detect changes in new releases of torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def redispatch_below_autograd(operator: Any, keyset: Any, args: Sequence[Any]) -> Any:
    """Calls an operator's kernel below the Autograd key of `keyset`."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def has_schema(operator: Any, text: str) -> bool:
    """Whether an operator takes and returns what a schema says, names included."""
    return str(operator._schema) == str(torch._C.parse_schema(text))


def tag(operator: Any, tags: Sequence[torch.Tag]) -> None:
    """Adds tags to an operator defined by a library: torch 2.10's stable ABI has no way to. Only
    Python reads them."""
    operator._tags = [*operator._tags, *(one for one in tags if one not in operator._tags)]


def has_kernel(name: str, key: str) -> bool:
    """Whether a loaded library has a kernel of an operator for a dispatch key."""
    known = torch._C._dispatch_has_kernel(name)
    return known and torch._C._dispatch_has_kernel_for_dispatch_key(name, key)


def any_requires_grad(args: Sequence[Any]) -> bool:
    return torch._C._any_requires_grad(*args)


def functorch_is_active() -> bool:
    """Whether a transform of torch.func (grad, jvp, vmap, ...) is active."""
    return torch._C._are_functorch_transforms_active()


def is_transformed_or_traced() -> bool:
    """Whether compilation, export, tracing, a functorch transform or a dispatch mode is active."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or functorch_is_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def differentiates_functionally() -> bool:
    """Whether a transform of torch.func or a level of forward-mode differentiation is active. False
    while compiling."""
    if torch.compiler.is_compiling():
        return False
    return functorch_is_active() or forward_ad._current_level >= 0


def has_tangent(value: Any) -> bool:
    """Whether the tensor carries a forward-mode tangent."""
    if forward_ad._current_level < 0 or not isinstance(value, Tensor):
        return False
    return forward_ad.unpack_dual(value).tangent is not None


def call_batched(rule: Callable[..., Any], operator: Any, args: Sequence[Any]) -> Any:
    """Calls an operator under vmap by a batching rule, as torch.library.register_vmap does."""
    from torch._functorch.autograd_function import custom_function_call_vmap_helper
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

    interpreter: Any = retrieve_current_functorch_interpreter()
    return custom_function_call_vmap_helper(interpreter, rule, operator, *args)


_BATCHED = torch._C._dispatch_key_parse("Batched")  # not in the DispatchKey enum


class _Batch:
    """The first argument of a batching rule."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size


def call_batched_gradients(rule: Callable[..., Any], args: Sequence[Any]) -> Any:
    """Calls an operator by its batching rule under the vmap of torch.autograd itself, that of
    is_grads_batched and of jacobian(vectorize=True)."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    sizes: list[int] = []

    def opened(value: Any) -> tuple[Any, Any]:
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            values, dims = zip(*map(opened, value), strict=True)
            return list(values), list(dims)
        if not isinstance(value, Tensor):
            return value, None
        bare = torch._remove_batch_dim(value, level, 0, 0)  # for an empty batch
        if bare.dim() == value.dim() + 1 and bare.size(0) > 0:
            sizes.append(bare.size(0))
            return bare, 0
        return value, None

    opened_args, dims = zip(*map(opened, args), strict=True)
    outputs, out_dims = rule(_Batch(sizes[0]), dims, *opened_args)
    if isinstance(outputs, Tensor):
        return torch._add_batch_dim(outputs, out_dims, level)
    return type(outputs)(
        torch._add_batch_dim(one, dim, level) for one, dim in zip(outputs, out_dims, strict=True)
    )


def is_batch_of_gradients(value: Tensor) -> bool:
    """Whether it is batched by the vmap inside torch.autograd (is_grads_batched)."""
    return torch._C._dispatch_keys(value).has(_BATCHED)


def is_tracing() -> bool:
    """Whether torch.jit.trace is recording."""
    return not torch.compiler.is_compiling() and torch._C._is_tracing()


def without_dispatch_key(key: str) -> AbstractContextManager[Any]:
    """A context in which the dispatcher skips the kernels of one key."""
    return torch._C._ExcludeDispatchKeyGuard(
        torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    )


def known_equal(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    """Whether two sizes are known to be equal for every input; adds no guard. Sizes recorded by
    torch.jit.trace are not."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(a == b))


def same_sizes(a: Sequence[int | torch.SymInt], b: Sequence[int | torch.SymInt]) -> bool:
    """Whether two shapes are equal; in a trace, for every input, so that sizes which are equal only
    in the example add no guard."""
    if not torch.compiler.is_compiling() and not torch._C._is_tracing():
        return a == b
    return all(known_equal(one, other) for one, other in zip(a, b, strict=True))


def hint(size: int | torch.SymInt | Tensor) -> int | None:
    """The value of a size in the exported example, without making it a constant."""
    if isinstance(size, int):
        return size
    if isinstance(size, Tensor):  # recorded by torch.jit.trace
        return int(size)
    value = size.node.hint
    return int(value) if isinstance(value, int) else None


def at_least_one(size: Any) -> Any:
    """max(size, 1) of a number, or of a size that a trace or an export records."""
    return size.clamp(min=1) if isinstance(size, Tensor) else torch.sym_max(size, 1)


def rows(matrix: Tensor, first: int, count: Any) -> Tensor:
    """So many rows, a number that a trace or an export may record."""
    if isinstance(count, Tensor):
        return matrix[first : first + count]
    return matrix.narrow(0, first, count)


def register_decomposition(
    operator: Any, decomposition: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    """Adds a decomposition to the table used by torch.onnx.export. The fake kernel is registered
    too, because with symbolic sizes torch would otherwise use the decomposition in its place."""
    from torch._decomp import decomposition_table, meta_table

    decomposition_table[operator] = decomposition
    meta_table[operator] = fake


def inductor_calls(operator: Any) -> None:
    """Registers Inductor's fallback for an operator, if Inductor is loaded. With CI set in the
    environment, it would refuse operators that have a decomposition."""
    lowering = sys.modules.get("torch._inductor.lowering")
    if lowering is not None and operator not in lowering.lowerings:
        exact_strides = lowering.constrain_to_fake_tensors
        lowering.make_fallback(operator, layout_constraint=exact_strides, warn=False)
