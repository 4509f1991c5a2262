"""UPerNet (Xiao et al., Unified Perceptual Parsing, ECCV 2018): pyramid pooling on the last stage,
a feature pyramid over all four stages, and a convolution of their concatenation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stripctx import functional, tracing, upstream
from stripctx.layers import PyramidPoolingConv
from stripctx.models.backbones import Weights
from stripctx.models.build import assemble
from stripctx.models.heads import classifier, conv_unit, over_pyramid
from stripctx.models.network import Backbone, Channels, NormLayer, SegmentationNetwork
from stripctx.models.registry import register

# Key names of both projects, relative to the head.
_LAYOUT = upstream.Layout(
    "mmseg's UPerHead and transformers' UperNetHead",
    r"psp_modules\.",
    (
        (r"psp_modules\.(\d)\.1\.conv\.", r"context.0.branches.\1.0."),
        (r"psp_modules\.(\d)\.1\.(?:bn|batch_norm)\.", r"context.0.branches.\1.1."),
        (r"bottleneck\.conv\.", "context.0.conv."),
        (r"bottleneck\.(?:bn|batch_norm)\.", "context.1."),
        (r"lateral_convs\.(\d)\.conv\.", r"laterals.\1.0."),
        (r"lateral_convs\.(\d)\.(?:bn|batch_norm)\.", r"laterals.\1.1."),
        (r"fpn_convs\.(\d)\.conv\.", r"levels.\1.0."),
        (r"fpn_convs\.(\d)\.(?:bn|batch_norm)\.", r"levels.\1.1."),
        (r"fpn_bottleneck\.conv\.", "fuse.0."),
        (r"fpn_bottleneck\.(?:bn|batch_norm)\.", "fuse.1."),
        (r"(?:conv_seg|classifier)\.", "classify.1."),
    ),
)


class UPerHead(nn.Module):
    """Computes logits at the size of the first stage from the features of four stages.

        top = relu(norm(conv3x3(pyramid pooling of the last stage)))
        m_3 = top, m_i = relu(norm(conv1x1(stage i))) + up(m_(i+1))
        y = relu(norm(conv3x3(concat(conv3x3(m_0), up(conv3x3(m_1)), up(conv3x3(m_2)), up(top)))))

    where each inner 3x3 convolution has a norm and ReLU. The outer one is the largest convolution
    of the network. It is computed on the small maps (`functional.pyramid_conv`), with a third of
    the multiply-adds; the interpolated maps and their concatenation are never allocated.

    load_state_dict accepts the entries of mmseg's `UPerHead` and transformers' `UperNetHead`.

    Args:
        channels: of the four stages.
        num_classes: K.
        width: of all intermediate maps.
        bins: of the pyramid pooling.
        dropout: before the classifier, on whole channels.
        align_corners: of every interpolation.
        global_norm: see `PyramidPooling`.
        norm_layer: creates the norms.

    Shape:
        (N, C_i, H_i, W_i), finest first, to (N, K, H_0, W_0).
    """

    def __init__(
        self,
        channels: Channels,
        num_classes: int,
        *,
        width: int,
        bins: Sequence[int | tuple[int, int]],
        dropout: float,
        align_corners: bool,
        global_norm: bool,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        pyramid = PyramidPoolingConv(
            channels[3],
            width,
            bins,
            branch_channels=width,
            align_corners=align_corners,
            global_norm=global_norm,
            norm_layer=norm_layer,
        )
        self.context = nn.Sequential(pyramid, norm_layer(width), nn.ReLU(inplace=True))
        self.laterals = nn.ModuleList(
            conv_unit(inputs, width, 1, norm_layer) for inputs in channels[:3]
        )
        self.levels = nn.ModuleList(conv_unit(width, width, 3, norm_layer) for _ in channels[:3])
        self.fuse = conv_unit(4 * width, width, 3, norm_layer)
        self.classify = classifier(width, num_classes, dropout=dropout, channel_dropout=True)
        upstream.accept(self, _LAYOUT)

    @tracing.one_call
    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        above = self.context(features[3])
        maps = [above]
        for i in (2, 1, 0):
            lateral = self.laterals[i](features[i])
            above = functional.pyramid_add(lateral, [above], align_corners=self.align_corners)
            maps.insert(0, self.levels[i](above))
        together = over_pyramid(self.fuse, maps[0], maps[1:], self.align_corners)
        logits: Tensor = self.classify(together)
        return logits


class UPerNet(SegmentationNetwork):
    """A feature pyramid with pyramid pooling at its top. Created by `upernet`."""

    layouts = (
        upstream.TRANSFORMERS.plus((r"decode_head\.", "head.")),
        upstream.MMSEG.plus((r"decode_head\.", "head.")),
    )

    def decode(self, features: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {"out": self.head(features)}


@register
def upernet(
    num_classes: int,
    backbone: str | Backbone = "resnet50",
    *,
    backbone_weights: Weights | None = None,
    aux: bool = True,
    bins: Sequence[int | tuple[int, int]] = (1, 2, 3, 6),
    output_stride: int = 32,
    dilation: str = "contracted",
    head_channels: int = 512,
    aux_channels: int = 256,
    dropout: float = 0.1,
    align_corners: bool = False,
    global_norm: bool = True,
    norm_layer: NormLayer = nn.BatchNorm2d,
) -> UPerNet:
    """UPerNet as in mmseg and transformers, on any backbone: ResNets, `timm:convnext_tiny`,
    `timm:swin_tiny_patch4_window7_224` and other networks of timm.

    load_state_dict accepts mmseg's checkpoints with a ResNet (`resnet50c`). Other backbones have
    different key names in each project; the decode head then loads separately, by
    `network.head.load_state_dict`, with the names of mmseg or transformers.

    Args:
        num_classes: K.
        backbone: see `create_backbone`.
        backbone_weights: the backbone's ImageNet weights, a path or a state_dict.
        aux: whether to add an auxiliary head on the third stage.
        bins: of the pyramid pooling.
        output_stride: of the backbone.
        dilation: the backbone's dilation scheme, if output_stride is less than 32.
        head_channels: the width of the head.
        aux_channels: the width of the auxiliary head.
        dropout: before both classifiers, on whole channels.
        align_corners: of every interpolation.
        global_norm: False gives the pyramid's 1x1 bin a bias instead of a norm, which permits
            training with batch size 1.
        norm_layer: creates all norms except those of timm's networks.

    Shape:
        (N, 3, H, W) of any size to `out`, and in training `aux`, (N, K, H, W).

    Examples:
        >>> network = upernet(21, "resnet18", head_channels=64)
        >>> {name: tuple(y.shape) for name, y in network(torch.randn(2, 3, 60, 75)).items()}
        {'out': (2, 21, 60, 75), 'aux': (2, 21, 60, 75)}
    """
    if head_channels < 1:
        raise ValueError(f"upernet: head_channels must be positive, got {head_channels}")

    def make_head(channels: Channels) -> nn.Module:
        return UPerHead(
            channels,
            num_classes,
            width=head_channels,
            bins=bins,
            dropout=dropout,
            align_corners=align_corners,
            global_norm=global_norm,
            norm_layer=norm_layer,
        )

    return assemble(
        "upernet",
        UPerNet,
        make_head,
        num_classes,
        backbone,
        backbone_weights=backbone_weights,
        aux=aux,
        output_stride=output_stride,
        dilation=dilation,
        dropout=dropout,
        channel_dropout=True,
        aux_channels=aux_channels,
        align_corners=align_corners,
        norm_layer=norm_layer,
    )
