"""PSPNet (Zhao et al., CVPR 2017): pyramid pooling, or ASPP, on a dilated backbone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from stripctx import upstream
from stripctx.layers import PyramidPoolingConv
from stripctx.models.aspp import ASPPConv, choose_rates
from stripctx.models.backbones import Weights
from stripctx.models.build import assemble
from stripctx.models.heads import classifier
from stripctx.models.network import Backbone, Channels, NormLayer, SegmentationNetwork
from stripctx.models.registry import register


class PSPNet(SegmentationNetwork):
    """Pyramid pooling with its convolution, norm, ReLU, dropout, classifier. Created by
    `pspnet`."""

    layouts = (
        upstream.SEMSEG.plus(
            (r"ppm\.", "head.0."), (r"cls\.0\.", "head.0.conv."), (r"cls\.([14])\.", r"head.\1.")
        ),
        upstream.ENCODING.plus(
            (r"head\.conv5\.0\.", "head.0."),
            (r"head\.conv5\.1\.", "head.0.conv."),
            (r"head\.conv5\.2\.", "head.1."),
            (r"head\.conv5\.5\.", "head.4."),
        ),
        upstream.MMSEG.plus(
            (r"decode_head\.psp_modules\.", "head.0.psp_modules."),
            (r"decode_head\.bottleneck\.conv\.", "head.0.conv."),
            (r"decode_head\.bottleneck\.bn\.", "head.1."),
            (r"decode_head\.conv_seg\.", "head.4."),
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        aux_head: nn.Module | None = None,
        *,
        align_corners: bool = True,
        zoom_factor: int = 8,
    ) -> None:
        super().__init__(backbone, head, aux_head, align_corners=align_corners)
        if zoom_factor not in (1, 2, 4, 8):
            raise ValueError(f"pspnet: zoom_factor must be 1, 2, 4 or 8, got {zoom_factor}")
        self.zoom_factor = zoom_factor

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return (
            (height - 1) * self.zoom_factor // 8 + 1,
            (width - 1) * self.zoom_factor // 8 + 1,
        )


@register
def pspnet(
    num_classes: int,
    backbone: str | Backbone = "resnet50",
    *,
    backbone_weights: Weights | None = None,
    aux: bool = True,
    context: str = "pyramid",
    bins: Sequence[int | tuple[int, int]] = (1, 2, 3, 6),
    rates: Sequence[int] | None = None,
    zoom_factor: int = 8,
    output_stride: int = 8,
    dilation: str = "uniform",
    head_channels: int = 512,
    dropout: float = 0.1,
    channel_dropout: bool = True,
    align_corners: bool = True,
    global_norm: bool = True,
    norm_layer: NormLayer = nn.BatchNorm2d,
) -> PSPNet:
    """PSPNet as in semseg.

    The pyramid and the following convolution are one `PyramidPoolingConv`: their concatenation,
    with twice the backbone's channels, is never built.

    load_state_dict accepts the checkpoints of semseg (whose ResNets are `resnet50s` etc. here),
    PyTorch-Encoding (`resnet50s`, or `resnet50` for its names without s; dilation="contracted") and
    mmseg (`resnet50c`, dilation="contracted", align_corners=False). Images may have any size;
    semseg requires 8n + 1.

    Args:
        num_classes: K.
        backbone: see `create_backbone`.
        backbone_weights: the backbone's ImageNet weights, a path or a state_dict.
        aux: whether to add an auxiliary head on the third stage. semseg always has one.
        context: "pyramid", or "aspp" for atrous spatial pyramid pooling (see `ASPP`).
        bins: of the pyramid.
        rates: of ASPP; by default (24, 48, 72) at output stride 4, half of that at 8, etc.
        zoom_factor: 1, 2, 4 or 8. The outputs have (H - 1) * zoom_factor // 8 + 1 rows, likewise
            columns: 8 gives the size of the image, 1 that of the features.
        output_stride: of the backbone.
        dilation: the backbone's dilation scheme.
        head_channels: the width before the classifier.
        dropout: before both classifiers.
        channel_dropout: whether to drop whole channels, as in semseg, or elements, as in
            PyTorch-Encoding.
        align_corners: of the pyramid and of the last resize.
        global_norm: False gives the 1x1 bin, or ASPP's mean branch, a bias instead of a norm, which
            permits training with batch size 1.
        norm_layer: creates the norms.

    Shape:
        (N, 3, H, W) of any size to `out`, and in training `aux`, (N, K, H, W).

    Examples:
        >>> network = pspnet(21, "resnet18")
        >>> {name: tuple(y.shape) for name, y in network(torch.randn(2, 3, 60, 75)).items()}
        {'out': (2, 21, 60, 75), 'aux': (2, 21, 60, 75)}
    """
    if context not in ("pyramid", "aspp"):
        raise ValueError(f'pspnet: context must be "pyramid" or "aspp", got {context!r}')

    def make_context(in_channels: int) -> nn.Module:
        norms: dict[str, Any] = {"global_norm": global_norm, "norm_layer": norm_layer}
        if context == "aspp":
            chosen = choose_rates("pspnet", rates, output_stride)
            return ASPPConv(in_channels, head_channels, chosen, **norms)
        return PyramidPoolingConv(
            in_channels, head_channels, bins, align_corners=align_corners, **norms
        )

    def make_head(channels: Channels) -> nn.Module:
        return nn.Sequential(
            make_context(channels[3]),
            norm_layer(head_channels),
            nn.ReLU(inplace=True),
            *classifier(
                head_channels, num_classes, dropout=dropout, channel_dropout=channel_dropout
            ),
        )

    return assemble(
        "pspnet",
        partial(PSPNet, zoom_factor=zoom_factor),
        make_head,
        num_classes,
        backbone,
        backbone_weights=backbone_weights,
        aux=aux,
        output_stride=output_stride,
        dilation=dilation,
        dropout=dropout,
        channel_dropout=channel_dropout,
        align_corners=align_corners,
        norm_layer=norm_layer,
    )
