"""The encoding family's operators: schemas, fake kernels, autograd formulas, autocast, vmap.

Shapes: x (N, D, H, W); codewords (K, D); scale (K); encoded (N, K, D). For the gate x, out, grad
(N, C, H, W); gate (N, C). The public functions are in stripctx.functional, the arithmetic in
stripctx.reference.encoding.

`allow_tf32` states whether CUDA may round the operands of float32 products to tf32. It is an
argument, so that the result depends on arguments only, not on a global setting.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stripctx.layout import empty, memory_format
from stripctx.ops import checks
from stripctx.ops.batching import in_a_loop, over_channels, over_images_of
from stripctx.ops.register import define, save_inputs
from stripctx.reference import encoding as reference
from stripctx.reference.common import widen

OPS = torch.ops.stripctx
HALF = (torch.float16, torch.bfloat16)


# encode: E_k = sum_i a_ik (x_i - c_k), a = softmax over k of s_k |x_i - c_k|^2.


def _check_encode_arguments(name: str, x: Tensor, codewords: Tensor, scale: Tensor) -> None:
    checks.tensor(name, "x", x, "(N, D, H, W)")
    checks.tensor(name, "codewords", codewords, "(K, D)")
    checks.size(name, "codewords", codewords, (codewords.size(0), x.size(1)))
    if codewords.size(0) == 0:
        raise ValueError(f"{name}: codewords must be at least one, got 0")
    if not (x.dtype in HALF and codewords.dtype is torch.float32):
        checks.alike(name, "codewords", codewords, "x", x)
    checks.same_device(name, "codewords", codewords, "x", x)
    checks.tensor(name, "scale", scale, "(K)")
    checks.alike(name, "scale", scale, "codewords", codewords)
    checks.size(name, "scale", scale, (codewords.size(0),))


def _check_encode(x: Tensor, codewords: Tensor, scale: Tensor, allow_tf32: bool) -> None:
    _check_encode_arguments("encode", x, codewords, scale)


def _fake_encode(x: Tensor, codewords: Tensor, scale: Tensor, allow_tf32: bool) -> Tensor:
    return codewords.new_empty((x.size(0), *codewords.shape))


def _save_encode(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.allow_tf32 = inputs
    ctx.save_for_backward(*tensors)


def _backward_encode(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *OPS.encode_backward(grad, *ctx.saved_tensors, ctx.allow_tf32), None


def _autocast_encode(
    x: Tensor, codewords: Tensor, scale: Tensor, allow_tf32: bool
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Casts x as conv2d would; parameters and sums stay float32."""
    if x.dtype is not torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
        codewords, scale = _at_least_float32(codewords), _at_least_float32(scale)
    return x, codewords, scale, allow_tf32


def _at_least_float32(value: Tensor) -> Tensor:
    return value.float() if value.dtype in HALF else value


def _check_encode_backward(
    grad: Tensor, x: Tensor, codewords: Tensor, scale: Tensor, allow_tf32: bool
) -> None:
    name = "encode_backward"
    _check_encode_arguments(name, x, codewords, scale)
    checks.tensor(name, "grad", grad, "(N, K, D)")
    checks.alike(name, "grad", grad, "codewords", codewords)
    checks.size(name, "grad", grad, (x.size(0), *codewords.shape))


def _fake_encode_backward(
    grad: Tensor, x: Tensor, codewords: Tensor, scale: Tensor, allow_tf32: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        empty(tuple(x.shape), x, memory_format(x)),
        codewords.new_empty(codewords.shape),
        scale.new_empty(scale.shape),
    )


def _backward_encode_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiates the gradients' composition in plain PyTorch."""
    saved = ctx.saved_tensors
    with torch.enable_grad():
        leaves = tuple(tensor.detach().requires_grad_() for tensor in saved)
        grad, x, codewords, scale = (widen(leaf) for leaf in leaves)
        outputs = reference.expanded_gradients(grad, x, codewords, scale)
        weights = tuple(g.to(o.dtype) for g, o in zip(grads, outputs, strict=True))
    return *torch.autograd.grad(outputs, leaves, weights), None


# channel_gate: out = relu(x + x * gate).


def _check_gate_arguments(name: str, x: Tensor, gate: Tensor) -> None:
    checks.tensor(name, "x", x, "(N, C, H, W)")
    checks.tensor(name, "gate", gate, "(N, C)")
    checks.alike(name, "gate", gate, "x", x)
    checks.size(name, "gate", gate, tuple(x.shape[:2]))


def _check_gate(x: Tensor, gate: Tensor) -> None:
    _check_gate_arguments("channel_gate", x, gate)


def _fake_gate(x: Tensor, gate: Tensor) -> Tensor:
    return empty(tuple(x.shape), x, memory_format(x))


def _backward_gate(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return OPS.channel_gate_backward(grad, *ctx.saved_tensors)


def _autocast_gate(x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    return x, gate.to(x.dtype)


def _check_gate_backward(grad: Tensor, x: Tensor, gate: Tensor) -> None:
    name = "channel_gate_backward"
    _check_gate_arguments(name, x, gate)
    checks.tensor(name, "grad", grad, "(N, C, H, W)")
    checks.alike(name, "grad", grad, "x", x)
    checks.size(name, "grad", grad, tuple(x.shape))


def _fake_gate_backward(grad: Tensor, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    return empty(tuple(x.shape), x, memory_format(x)), gate.new_empty(gate.shape)


def _backward_gate_backward(ctx: Any, grad_x: Tensor, grad_gate: Tensor) -> tuple[Tensor, ...]:
    """Differentiates passed * (1 + gate) and the sum of passed * x."""
    grad, x, gate = ctx.saved_tensors
    factor, toward = gate[..., None, None], grad_gate[..., None, None]
    stopped = x + x * factor <= 0
    to_grad = torch.where(stopped, 0, grad_x + grad_x * factor + toward * x)
    to_x = torch.where(stopped, 0, toward * grad)
    to_gate = torch.where(stopped, 0, grad_x * grad).sum((2, 3))
    return to_grad, to_x, to_gate


define(
    "encode",
    check=_check_encode,
    reference=reference.encode,
    fake=_fake_encode,
    setup_context=_save_encode,
    backward=_backward_encode,
    vmap=over_images_of(1),
    autocast=_autocast_encode,
)
define(
    "encode_backward",
    check=_check_encode_backward,
    reference=reference.encode_backward,
    fake=_fake_encode_backward,
    setup_context=_save_encode,
    backward=_backward_encode_backward,
    vmap=in_a_loop,
)
define(
    "channel_gate",
    check=_check_gate,
    reference=reference.channel_gate,
    fake=_fake_gate,
    setup_context=save_inputs,
    backward=_backward_gate,
    vmap=over_channels,
    autocast=_autocast_gate,
)
define(
    "channel_gate_backward",
    check=_check_gate_backward,
    reference=reference.channel_gate_backward,
    fake=_fake_gate_backward,
    setup_context=save_inputs,
    backward=_backward_gate_backward,
    vmap=over_channels,
)
