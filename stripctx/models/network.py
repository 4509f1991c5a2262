"""What all segmentation networks share: a backbone, a head, an auxiliary head, and the dictionary
that they return."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from stripctx import upstream

NormLayer = Callable[[int], nn.Module]


class Backbone(nn.Module):
    """A network that turns an image (N, 3, H, W) into the features of its four stages, finest
    first. `channels` are their widths. Subclass it to use a backbone of your own."""

    channels: tuple[int, int, int, int]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(f"{type(self).__name__} must define forward")


class FCNHead(nn.Sequential):
    """3x3 convolution, normalisation, ReLU, dropout, 1x1 convolution to the classes.

    The head of FCN (Long et al., CVPR 2015, as PyTorch-Encoding builds it) and the auxiliary head
    of every network here.

    Args:
        in_channels: C.
        num_classes: K.
        hidden_channels: the width between the convolutions; in_channels // 4 unless given. HANet's
            auxiliary head has 512.
        dropout: its probability.
        channel_dropout: drops whole channels (semseg, SPNet, HANet, mmseg) rather than elements
            (PyTorch-Encoding, torchvision).
        bias: whether the 3x3 convolution has one. Only HANet's auxiliary head does.
        norm_layer: makes the normalisation, called with hidden_channels.

    Shape:
        (N, C, H, W) to (N, K, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        hidden_channels: int | None = None,
        dropout: float = 0.1,
        channel_dropout: bool = False,
        bias: bool = False,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        if in_channels < 1:
            raise ValueError(f"FCNHead: in_channels must be positive, got {in_channels}")
        if num_classes < 1:
            raise ValueError(f"FCNHead: num_classes must be positive, got {num_classes}")
        hidden = hidden_channels or max(1, in_channels // 4)
        super().__init__(
            nn.Conv2d(in_channels, hidden, 3, padding=1, bias=bias),
            norm_layer(hidden),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout) if channel_dropout else nn.Dropout(dropout),
            nn.Conv2d(hidden, num_classes, 1),
        )


class SegmentationNetwork(nn.Module):
    """A backbone, a head, and in training an auxiliary head on the third stage.

    A subclass defines `decode`; all maps that it returns are resized to the image, bilinearly, and
    vectors pass as they are.

    Args:
        backbone: gives the features of four stages.
        head: what `decode` uses.
        aux_head: turns the third stage's features into logits; None for no auxiliary output.
        align_corners: of the last resize.
        layouts: the key layouts of published checkpoints that load_state_dict shall take.

    Shape:
        (N, 3, H, W) of any size to a dictionary: `out` (N, K, H, W), in training `aux`, of the same
        shape, and what else `decode` gives.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        aux_head: nn.Module | None = None,
        *,
        align_corners: bool = True,
        layouts: tuple[upstream.Layout, ...] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.aux_head = aux_head
        self.align_corners = align_corners
        upstream.accept(self, *layouts)

    def decode(self, features: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The outputs of the head, at the head's own size."""
        return {"out": self.head(features[-1])}

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Of the maps that come out, for an image of this size: the same."""
        return height, width

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.extract(x)
        return self.collect(x, features, self.decode(features))

    def extract(self, x: Tensor) -> tuple[Tensor, ...]:
        """The backbone's features of an image."""
        if x.dim() != 4 or x.shape[1] != 3:
            name = type(self).__name__
            raise ValueError(f"{name}: x must have shape (N, 3, H, W), got {tuple(x.shape)}")
        return self.backbone(x)

    def collect(
        self, x: Tensor, features: tuple[Tensor, ...], outputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """What `decode` gave, and in training the auxiliary output, at the size that comes out."""
        if self.training and self.aux_head is not None:
            outputs["aux"] = self.aux_head(features[2])
        size = self.output_size(x.shape[2], x.shape[3])
        return {name: self._resize(value, size) for name, value in outputs.items()}

    def _resize(self, value: Tensor, size: tuple[int, ...]) -> Tensor:
        if value.dim() != 4 or value.shape[2:] == size:
            return value
        return F.interpolate(value, size, mode="bilinear", align_corners=self.align_corners)
