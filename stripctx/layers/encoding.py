"""The encoding layer (Zhang, Xue, Dana, Deep TEN, CVPR 2017) and the context encoding module built
on it (Zhang et al., Context Encoding for Semantic Segmentation, CVPR 2018, fig. 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripctx import functional, tracing, upstream
from stripctx.ops import checks

_PYTORCH_ENCODING = upstream.Layout(
    "PyTorch-Encoding's EncModule",
    r"encoding\.3\.",
    (
        (r"encoding\.0\.", "conv."),
        (r"encoding\.1\.", "norm."),
        (r"encoding\.3\.", "encoding."),
        (r"encoding\.4\.", "code_norm."),
        (r"fc\.0\.", "gate."),
        (r"selayer\.", "presence."),
    ),
)
_MMSEG = upstream.Layout(
    "mmseg's EncModule, and EncHead's se_layer beside it",
    r"encoding_project\.",
    (
        (r"encoding_project\.conv\.", "conv."),
        (r"encoding_project\.bn\.", "norm."),
        (r"encoding\.0\.", "encoding."),
        (r"encoding\.1\.", "code_norm."),
        (r"fc\.0\.", "gate."),
        (r"se_layer\.", "presence."),
    ),
)
# Its `scale` is the last random draw, or -1/2, not a learned value.
_ENCODING_DROP = upstream.Layout("PyTorch-Encoding's EncodingDrop", r"scale$", ((r"scale$", None),))


class EncodingLayer(nn.Module):
    """Softly assigns every position to one of K learned codewords and sums the residuals of each.

        E_k = sum over i of a_ik (x_i - c_k),  a_i = softmax over k of s_k |x_i - c_k|^2

    (Deep TEN, eq. 2 to 4, s = -beta). The result is an orderless descriptor of a map of any size.
    `Encoding` of PyTorch-Encoding and of mmseg has the same parameters, so their state_dicts load
    unchanged: `codewords` (K, D), initialised from U(-1/sqrt(KD), 1/sqrt(KD)), and `scale` (K), the
    negative of the paper's smoothing factor, initialised from U(-1, 0). Unlike in PyTorch-Encoding,
    the gradient is finite for a scale of exactly 0.

    With scale_dropout the scale is not learned: in training it is drawn for every codeword from
    U(-1, 0) at each call, and in evaluation it is the mean, -1/2. PyTorch-Encoding's `EncodingDrop`
    implements this by overwriting its parameter `scale`, even a loaded one. Here this variant has
    no such parameter (`scale` is None), and the entry of a state_dict is skipped.

    Args:
        in_channels: D.
        num_codes: K.
        scale_dropout: see above.

    Shape:
        (N, D, H, W) or (N, D, L) to (N, K, D). A sum over positions, not a mean.

    Examples:
        >>> EncodingLayer(128, 32)(torch.randn(2, 128, 14, 14)).shape
        torch.Size([2, 32, 128])
    """

    scale: nn.Parameter | None

    def __init__(self, in_channels: int, num_codes: int, *, scale_dropout: bool = False) -> None:
        super().__init__()
        _positive("EncodingLayer", in_channels=in_channels, num_codes=num_codes)
        self.in_channels = in_channels
        self.num_codes = num_codes
        self.codewords = nn.Parameter(torch.empty(num_codes, in_channels))
        self.scale = None if scale_dropout else nn.Parameter(torch.empty(num_codes))
        upstream.accept(self, *([_ENCODING_DROP] if scale_dropout else []))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = (self.num_codes * self.in_channels) ** -0.5
        nn.init.uniform_(self.codewords, -bound, bound)
        if self.scale is not None:
            nn.init.uniform_(self.scale, -1, 0)

    @tracing.one_call
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in (3, 4) or x.shape[1] != self.in_channels:
            raise ValueError(
                f"EncodingLayer: x must have shape (N, {self.in_channels}, H, W) or "
                f"(N, {self.in_channels}, L), got {checks.sizes(x)}"
            )
        checks.floating("EncodingLayer", "x", x)
        return functional.encode(x, self.codewords, self._scales())

    def _scales(self) -> Tensor:
        if self.scale is not None:
            return self.scale
        like = self.codewords
        if self.training:
            return -torch.rand(self.num_codes, dtype=like.dtype, device=like.device)
        return like.new_full((self.num_codes,), -0.5)

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, num_codes={self.num_codes}, "
            f"scale_dropout={self.scale is None}"
        )


class ContextEncoding(nn.Module):
    """EncNet's context encoding module: gates channels by an encoding of the whole map.

        e     = reduction over K of relu(code_norm(encoding(relu(norm(conv1x1(x))))))    (N, C)
        out   = relu(x + x * sigmoid(gate(e)))                                      (N, C, H, W)
        logits = presence(e)                                                  (N, num_classes)

    The logits predict which classes are in the image, for the semantic encoding loss. `code_norm`
    is a BatchNorm1d with one mean and variance per codeword, over N and C.

    load_state_dict accepts PyTorch-Encoding's EncModule (`encoding.0` to `encoding.4`, `fc.0`,
    `selayer`) and mmseg's (`encoding_project`, `encoding`, `fc.0`, and `se_layer`, which mmseg
    keeps in its head). mmseg's module returns the encoding first, then the map, and no logits.

    Args:
        in_channels: C.
        num_classes: the number of logits.
        num_codes: K.
        se_loss: whether to compute logits; if not, None is returned in their place.
        gated: whether to gate the map; if not, x is returned unchanged with the logits, as in the
            branch on stage 3 that the paper uses only for its loss.
        scale_dropout: see `EncodingLayer`.
        reduction: over the codewords: "mean", as in all implementations, or "sum", as in the paper.
        norm_layer: makes the norm over C.

    Shape:
        (N, C, H, W) to ((N, C, H, W), (N, num_classes) or None).

    Examples:
        >>> features, logits = ContextEncoding(64, 21)(torch.randn(2, 64, 30, 40))
        >>> features.shape, logits.shape
        (torch.Size([2, 64, 30, 40]), torch.Size([2, 21]))
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_codes: int = 32,
        *,
        se_loss: bool = True,
        gated: bool = True,
        reduction: str = "mean",
        scale_dropout: bool = False,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        _positive("ContextEncoding", in_channels=in_channels, num_codes=num_codes)
        if se_loss:
            _positive("ContextEncoding", num_classes=num_classes)
        if not (se_loss or gated):
            raise ValueError("ContextEncoding: se_loss or gated must be true, got neither")
        if reduction not in ("mean", "sum"):
            raise ValueError(
                f'ContextEncoding: reduction must be "mean" or "sum", got {reduction!r}'
            )
        self.reduction = reduction
        self.conv = nn.Conv2d(in_channels, in_channels, 1, bias=False)
        self.norm = norm_layer(in_channels)
        self.encoding = EncodingLayer(in_channels, num_codes, scale_dropout=scale_dropout)
        self.code_norm = nn.BatchNorm1d(num_codes)
        self.gate = nn.Linear(in_channels, in_channels) if gated else None
        self.presence = nn.Linear(in_channels, num_classes) if se_loss else None
        upstream.accept(self, _PYTORCH_ENCODING, _MMSEG)

    @tracing.one_call
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        checks.feature_map("ContextEncoding", "x", x, self.conv.in_channels)
        projected = F.relu(self.norm(self.conv(x)), inplace=True)
        encoded = F.relu(self.code_norm(self.encoding(projected)), inplace=True)
        pooled = encoded.mean(1) if self.reduction == "mean" else encoded.sum(1)
        if self.gate is not None:
            x = functional.channel_gate(x, self.gate(pooled).sigmoid())
        return x, None if self.presence is None else self.presence(pooled)


def _positive(name: str, **sizes: int) -> None:
    for argument, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}: {argument} must be positive, got {value}")
