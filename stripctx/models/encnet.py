"""EncNet (Zhang et al., CVPR 2018): context encoding with the semantic encoding loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stripctx import upstream
from stripctx.layers import ContextEncoding
from stripctx.models.backbones import Weights
from stripctx.models.build import assemble
from stripctx.models.heads import classifier, conv_unit
from stripctx.models.network import Backbone, Channels, NormLayer, SegmentationNetwork, resized
from stripctx.models.registry import register


class EncHead(nn.Module):
    """A 3x3 convolution, fused with the second and third stage if `lateral`, context encoding and a
    classifier; in training also the presence logits of the encoding and of stage 3.

    Upstream's `EncHead`. Its keys, and mmseg's, load through `EncNet`.

    Shape:
        the features of four stages to a dictionary: `out` (N, K, H, W); in training `se` and
        `se_stage3`, (N, K), if enabled.
    """

    def __init__(
        self,
        channels: Channels,
        num_classes: int,
        *,
        width: int,
        num_codes: int,
        lateral: bool,
        se_loss: bool,
        se_stage3: bool,
        reduction: str,
        scale_dropout: bool,
        dropout: float,
        channel_dropout: bool,
        align_corners: bool,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners

        def encoding(inputs: int, *, se_loss: bool = True, gated: bool = True) -> ContextEncoding:
            return ContextEncoding(
                inputs,
                num_classes,
                num_codes,
                se_loss=se_loss,
                gated=gated,
                reduction=reduction,
                scale_dropout=scale_dropout,
                norm_layer=norm_layer,
            )

        self.reduce = conv_unit(channels[3], width, 3, norm_layer)
        self.laterals = nn.ModuleList(
            conv_unit(inputs, width, 1, norm_layer) for inputs in channels[1:3] if lateral
        )
        self.fuse = conv_unit(3 * width, width, 3, norm_layer) if lateral else None
        self.context = encoding(width, se_loss=se_loss)
        self.classify = classifier(
            width, num_classes, dropout=dropout, channel_dropout=channel_dropout
        )
        self.stage3 = encoding(channels[2], gated=False) if se_stage3 else None

    def forward(self, features: tuple[Tensor, ...]) -> dict[str, Tensor]:
        x = self.reduce(features[3])
        if self.fuse is not None:
            sides = (unit(y) for unit, y in zip(self.laterals, features[1:3], strict=True))
            sides = (resized(side, x.shape[2:], self.align_corners) for side in sides)
            x = self.fuse(torch.cat([x, *sides], 1))
        x, presence = self.context(x)
        outputs = {"out": self.classify(x)}
        if self.training and presence is not None:
            outputs["se"] = presence
        if self.training and self.stage3 is not None:
            outputs["se_stage3"] = self.stage3(features[2])[1]
        return outputs


class EncNet(SegmentationNetwork):
    """Context encoding on a dilated backbone. Created by `encnet`."""

    layouts = (
        upstream.ENCODING.plus(
            (r"head\.conv5\.", "head.reduce."),
            (r"head\.connect\.", "head.laterals."),
            (r"head\.fusion\.", "head.fuse."),
            (r"head\.encmodule\.", "head.context."),
            (r"head\.conv6\.", "head.classify."),
        ),
        upstream.MMSEG.plus(
            (r"decode_head\.bottleneck\.conv\.", "head.reduce.0."),
            (r"decode_head\.bottleneck\.bn\.", "head.reduce.1."),
            (r"decode_head\.lateral_convs\.(\d)\.conv\.", r"head.laterals.\1.0."),
            (r"decode_head\.lateral_convs\.(\d)\.bn\.", r"head.laterals.\1.1."),
            (r"decode_head\.fusion\.conv\.", "head.fuse.0."),
            (r"decode_head\.fusion\.bn\.", "head.fuse.1."),
            (r"decode_head\.enc_module\.", "head.context."),
            (r"decode_head\.se_layer\.", "head.context.se_layer."),
            (r"decode_head\.conv_seg\.", "head.classify.1."),
        ),
    )

    def decode(self, features: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return self.head(features)


@register
def encnet(
    num_classes: int,
    backbone: str | Backbone = "resnet50",
    *,
    backbone_weights: Weights | None = None,
    aux: bool = True,
    se_loss: bool = True,
    se_stage3: bool = False,
    lateral: bool = False,
    num_codes: int = 32,
    reduction: str = "mean",
    scale_dropout: bool = False,
    output_stride: int = 8,
    dilation: str = "contracted",
    head_channels: int = 512,
    dropout: float = 0.1,
    channel_dropout: bool = False,
    align_corners: bool = True,
    norm_layer: NormLayer = nn.BatchNorm2d,
) -> EncNet:
    """EncNet as in PyTorch-Encoding and mmseg, with the further options of its paper.

    load_state_dict accepts the checkpoints of PyTorch-Encoding (`resnet50s`, or `resnet50` for its
    names without s; lateral=True for those of Pascal-Context and VOC) and mmseg (`resnet50c`,
    channel_dropout=True, align_corners=False). PyTorch-Encoding also returns presence logits in
    evaluation; here they are returned only in training, as used by `losses.SegmentationLoss`.

    Args:
        num_classes: K.
        backbone: see `create_backbone`.
        backbone_weights: the backbone's ImageNet weights, a path or a state_dict.
        aux: whether to add an auxiliary head on the third stage. The paper has none.
        se_loss: whether the encoding predicts which classes are present.
        se_stage3: whether a second context encoding on the third stage predicts them too, used only
            for its loss. In the paper, but in neither implementation.
        lateral: whether to fuse the second and third stage with the fourth before the encoding.
        num_codes, reduction, scale_dropout: of the encoding; see `ContextEncoding`.
        output_stride: of the backbone.
        dilation: the backbone's dilation scheme.
        head_channels: the width of the encoding.
        dropout: before both classifiers.
        channel_dropout: whether to drop whole channels instead of elements.
        align_corners: of every resize.
        norm_layer: creates all norms except that over the codewords.

    Shape:
        (N, 3, H, W) of any size to `out`, (N, K, H, W), and in training `aux`, of the same shape,
        `se` and `se_stage3`, (N, K).

    Examples:
        >>> network = encnet(21, "resnet18", se_stage3=True)
        >>> {name: tuple(y.shape) for name, y in network(torch.randn(2, 3, 60, 75)).items()}
        {'out': (2, 21, 60, 75), 'se': (2, 21), 'se_stage3': (2, 21), 'aux': (2, 21, 60, 75)}
    """

    def make_head(channels: Channels) -> nn.Module:
        return EncHead(
            channels,
            num_classes,
            width=head_channels,
            num_codes=num_codes,
            lateral=lateral,
            se_loss=se_loss,
            se_stage3=se_stage3,
            reduction=reduction,
            scale_dropout=scale_dropout,
            dropout=dropout,
            channel_dropout=channel_dropout,
            align_corners=align_corners,
            norm_layer=norm_layer,
        )

    return assemble(
        "encnet",
        EncNet,
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
