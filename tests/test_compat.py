"""The private names of torch that stripctx/_compat.py uses exist, and no other file uses private
names."""

from __future__ import annotations

import re

import toolkit
import torch
from torch.autograd import forward_ad

PACKAGE = toolkit.REPOSITORY / "stripctx"


def test_private_functions_exist() -> None:
    for name in (
        "_AutoDispatchBelowAutograd",
        "_after_autograd_keyset",
        "_any_requires_grad",
        "_are_functorch_transforms_active",
        "_ExcludeDispatchKeyGuard",
        "DispatchKeySet",
        "DispatchKey",
        "_is_tracing",
        "_len_torch_dispatch_stack",
        "_dispatch_has_kernel",
        "_dispatch_has_kernel_for_dispatch_key",
        "_dispatch_keys",
        "parse_schema",
        "_vmapmode_increment_nesting",
        "_vmapmode_decrement_nesting",
    ):
        assert hasattr(torch._C, name), name
    assert hasattr(torch._C.DispatchKey, "AutocastCPU")
    assert hasattr(torch._C.DispatchKey, "AutocastCUDA")
    assert torch._C._dispatch_key_parse("Batched") is not None
    assert callable(torch._add_batch_dim) and callable(torch._remove_batch_dim)
    assert isinstance(torch._decomp.decomposition_table, dict)
    assert isinstance(torch._decomp.meta_table, dict)
    assert isinstance(forward_ad._current_level, int)
    from torch._inductor import lowering

    assert isinstance(lowering.lowerings, dict)
    assert callable(lowering.make_fallback) and callable(lowering.constrain_to_fake_tensors)
    from torch._functorch.autograd_function import custom_function_call_vmap_helper
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

    assert callable(custom_function_call_vmap_helper)
    assert callable(retrieve_current_functorch_interpreter)


def test_nothing_else_is_private() -> None:
    private = re.compile(r"torch\._(?!_version)\w|\b_C\._|torch\._C|forward_ad\._")
    for path in PACKAGE.rglob("*.py"):
        if path.name != "_compat.py":
            found = private.search(path.read_text())
            assert not found, f"{path.relative_to(PACKAGE)}: {found and found[0]}"
