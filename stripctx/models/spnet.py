"""SPNet (Hou et al., CVPR 2020): strip pooling in the backbone, mixed pooling in the head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stripctx import upstream
from stripctx.layers import MixedPooling
from stripctx.models.backbones import Weights
from stripctx.models.build import assemble
from stripctx.models.heads import FCNHead, conv_unit
from stripctx.models.network import Backbone, Channels, NormLayer, SegmentationNetwork
from stripctx.models.registry import register


class SPHead(nn.Module):
    """A 1x1 convolution to half the channels, a sequence of mixed pooling modules, and a
    classifier.

    Upstream's `SPHead`; its keys load through `SPNet`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        arms: Sequence[str],
        pooling: Sequence[str],
        pool_sizes: tuple[int | tuple[int, int], int | tuple[int, int]],
        dropout: float,
        align_corners: bool,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        width = in_channels // 2
        self.reduce = conv_unit(in_channels, width, 1, norm_layer)
        self.mixed = nn.Sequential(
            *(
                MixedPooling(
                    width,
                    pool_sizes,
                    arms=arms_of_one,
                    pooling=pooling_of_one,
                    norm_layer=norm_layer,
                    align_corners=align_corners,
                )
                for arms_of_one, pooling_of_one in zip(arms, pooling, strict=True)
            )
        )
        self.classify = FCNHead(
            width,
            num_classes,
            hidden_channels=width // 2,
            dropout=dropout,
            channel_dropout=True,
            norm_layer=norm_layer,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.mixed(self.reduce(x)))


class SPNet(SegmentationNetwork):
    """Mixed pooling on a backbone with strip pooling. Created by `spnet`."""

    layouts = (
        upstream.ENCODING.plus(
            (r"head\.trans_layer\.", "head.reduce."),
            *((rf"head\.strip_pool{i + 1}\.", f"head.mixed.{i}.") for i in range(8)),
            (r"head\.score_layer\.", "head.classify."),
        ),
    )


def _of_each(name: str, values: str | Sequence[str], count: int) -> tuple[str, ...]:
    """One value per module, from a common value or a sequence of `count`."""
    if isinstance(values, str):
        return (values,) * count
    if len(values) != count:
        raise ValueError(
            f"spnet: {name} must be one value or one for each of {count} modules, got {values}"
        )
    return tuple(values)


@register
def spnet(
    num_classes: int,
    backbone: str | Backbone = "resnet50",
    *,
    backbone_weights: Weights | None = None,
    aux: bool = True,
    strip_pooling: bool = True,
    mixed: int = 2,
    arms: str | Sequence[str] = "both",
    pooling: str | Sequence[str] = "strip",
    pool_sizes: tuple[int | tuple[int, int], int | tuple[int, int]] = (20, 12),
    output_stride: int = 8,
    dilation: str = "multi_grid",
    dropout: float = 0.1,
    align_corners: bool = True,
    norm_layer: NormLayer = nn.BatchNorm2d,
) -> SPNet:
    """SPNet, as released by its authors, with the ablations of its paper.

    load_state_dict accepts upstream's checkpoints, whose ResNets are `resnet50s` and `resnet101s`
    here; those trained without `spm_on` need strip_pooling=False. The auxiliary head runs once per
    training step; upstream runs it twice in training and once, unused, in evaluation.

    Args:
        num_classes: K.
        backbone: see `create_backbone`.
        backbone_weights: the backbone's ImageNet weights, a path or a state_dict; they need not
            have strip pooling.
        aux: whether to add an auxiliary head on the third stage. Upstream cannot train without it.
        strip_pooling: whether the backbone has strip pooling modules (SPM), in the last block of
            its first three stages and in every block of the fourth. Needs `resnet50` or deeper.
        mixed: the number of mixed pooling modules (MPM) in the head, 0 to 8.
        arms: "both", "short" or "long", for all modules or a sequence; see `MixedPooling`.
        pooling: of the long branches, "strip" or "global", for all modules or a sequence.
        pool_sizes: of all modules.
        output_stride: of the backbone.
        dilation: the backbone's dilation scheme; upstream's is "multi_grid".
        dropout: before both classifiers, on whole channels.
        align_corners: of every resize.
        norm_layer: creates the norms.

    Shape:
        (N, 3, H, W) of any size to `out`, and in training `aux`, (N, K, H, W).

    Examples:
        >>> network = spnet(21, "resnet18", strip_pooling=False)
        >>> {name: tuple(y.shape) for name, y in network(torch.randn(2, 3, 60, 75)).items()}
        {'out': (2, 21, 60, 75), 'aux': (2, 21, 60, 75)}
    """
    if not 0 <= mixed <= 8:
        raise ValueError(f"spnet: mixed must be from 0 to 8, got {mixed}")

    def make_head(channels: Channels) -> nn.Module:
        return SPHead(
            channels[3],
            num_classes,
            arms=_of_each("arms", arms, mixed),
            pooling=_of_each("pooling", pooling, mixed),
            pool_sizes=pool_sizes,
            dropout=dropout,
            align_corners=align_corners,
            norm_layer=norm_layer,
        )

    return assemble(
        "spnet",
        SPNet,
        make_head,
        num_classes,
        backbone,
        backbone_weights=backbone_weights,
        aux=aux,
        output_stride=output_stride,
        dilation=dilation,
        strip_pooling=strip_pooling,
        dropout=dropout,
        channel_dropout=True,
        align_corners=align_corners,
        norm_layer=norm_layer,
    )
