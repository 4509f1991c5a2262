"""Base classes of the networks: `Backbone` and `SegmentationNetwork`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripctx import _compat, functional, tracing, upstream
from stripctx.ops import checks

NormLayer = Callable[[int], nn.Module]
Channels = tuple[int, int, int, int]


class Backbone(nn.Module):
    """Base class of backbones. Subclass it to use your own.

    A subclass sets `channels`, the widths of the four stages, and defines `forward`.

    Shape:
        (N, 3, H, W) to four maps (N, channels[i], H_i, W_i), finest first.

    Examples:
        >>> class Pooled(Backbone):
        ...     channels = (3, 3, 3, 3)
        ...
        ...     def forward(self, x):
        ...         return tuple(torch.nn.functional.avg_pool2d(x, s) for s in (4, 8, 8, 8))
        >>> [tuple(f.shape) for f in Pooled()(torch.randn(1, 3, 64, 64))]
        [(1, 3, 16, 16), (1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8)]
    """

    channels: Channels

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> tuple[Tensor, ...]: ...


def check_image(network: nn.Module, x: Tensor) -> None:
    if tracing.is_proxy(x):
        return
    checks.feature_map(type(network).__name__, "x", x, 3)


def resized(x: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    """The map, interpolated bilinearly unless it already has this size."""
    if not tracing.is_proxy(x) and _compat.same_sizes(x.shape[2:], size):
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def _is_map(name: str, value: Tensor) -> bool:
    return name in ("out", "aux") if tracing.is_proxy(value) else value.dim() == 4


class SegmentationNetwork(nn.Module):
    """Base class of the segmentation networks: a backbone, a head, and in training an auxiliary
    head on the third stage.

    Subclasses override `decode`. The maps it returns are resized bilinearly to the image; vectors
    are returned unchanged. `layouts` are those of published checkpoints that load_state_dict
    accepts in addition to its own. If `enlarge_aux` is False, `aux` keeps the size of the third
    stage, and the loss reduces the labels.

    Args:
        backbone: computes the features of four stages.
        head: used by `decode`.
        aux_head: computes logits from the third stage's features; None for no auxiliary output.
        align_corners: of the last resize.

    Shape:
        (N, 3, H, W) of any size to a dictionary: `out` (N, K, H, W), in training `aux` of the same
        shape, and further outputs of `decode`. With resize=False, `out` and `aux` keep the size of
        their heads, for `stripctx.losses`, which interpolates them pixel by pixel.

    Examples:
        >>> from stripctx.models import create_backbone
        >>> backbone = create_backbone("resnet18")
        >>> network = SegmentationNetwork(backbone, torch.nn.Conv2d(512, 19, 1)).eval()
        >>> x = torch.randn(1, 3, 64, 96)
        >>> network(x)["out"].shape, network(x, resize=False)["out"].shape
        (torch.Size([1, 19, 64, 96]), torch.Size([1, 19, 8, 12]))
        >>> network.predict(x).shape
        torch.Size([1, 64, 96])
    """

    layouts: ClassVar[tuple[upstream.Layout, ...]] = ()
    enlarge_aux: bool = True

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        aux_head: nn.Module | None = None,
        *,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.aux_head = aux_head
        self.align_corners = align_corners
        upstream.accept(self, *self.layouts)

    def decode(self, features: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The outputs of the head, at the head's own size."""
        return {"out": self.head(features[-1])}

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The size of the output maps for an image of this size: the same."""
        return height, width

    # `resize` is not keyword-only: torch.onnx.export(dynamo=False) passes defaults by position.
    def forward(self, x: Tensor, resize: bool = True) -> dict[str, Tensor]:
        features = self.extract(x)
        return self.collect(x, features, self.decode(features), resize)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, *, resize: bool = True) -> dict[str, Tensor]: ...

    @torch.no_grad()
    def predict(self, x: Tensor, *args: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        """The label map (N, H, W): the class of the largest logit at every pixel. The logits at
        image size are not allocated.

        Args:
            x, args: the arguments of forward. The mode (training or evaluation) is not changed.
            dtype: int64, int32, or uint8 for up to 256 classes.

        Returns:
            (N, H, W), labels from 0 to K - 1.
        """
        logits = self(x, *args, resize=False)["out"]
        size = self.output_size(x.shape[2], x.shape[3])
        if size[0] < logits.shape[2] or size[1] < logits.shape[3]:
            return resized(logits, size, self.align_corners).argmax(1).to(dtype)
        return functional.upsample_argmax(
            logits, size, align_corners=self.align_corners, dtype=dtype
        )

    def extract(self, x: Tensor) -> tuple[Tensor, ...]:
        """The backbone's features of an image."""
        check_image(self, x)
        return self.backbone(x)

    def collect(
        self,
        x: Tensor,
        features: tuple[Tensor, ...],
        outputs: dict[str, Tensor],
        resize: bool,
    ) -> dict[str, Tensor]:
        """The outputs of `decode` and, in training, the auxiliary output, resized if `resize`."""
        if self.training and self.aux_head is not None:
            outputs["aux"] = self.aux_head(features[2])
        if not tracing.is_proxy(resize) and not resize:  # torch.fx traces the default
            return outputs
        size = self.output_size(x.shape[2], x.shape[3])
        kept = () if self.enlarge_aux else ("aux",)
        return {
            name: resized(value, size, self.align_corners)
            if name not in kept and _is_map(name, value)
            else value
            for name, value in outputs.items()
        }
