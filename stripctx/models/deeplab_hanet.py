"""DeepLabv3+ (Chen et al., ECCV 2018) with height-driven attention (HANet, Choi et al., CVPR 2020)
between its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from stripctx import functional, tracing, upstream
from stripctx.layers import HeightAttention
from stripctx.models.aspp import ASPP, choose_rates
from stripctx.models.backbones import Weights
from stripctx.models.build import assemble
from stripctx.models.heads import conv_unit, over_pyramid
from stripctx.models.network import Backbone, Channels, NormLayer, SegmentationNetwork
from stripctx.models.registry import register

COARSE_CHANNELS = 256
FINE_CHANNELS = 48

_OWN = r"(aspp|bot_fine|bot_aspp|final1|final2|hanet\d)\."


class HANetHead(nn.Module):
    """ASPP and DeepLabv3+'s decoder, with up to five height attentions; upstream's names.

    hanet0 gates the last stage by the third; hanet1 ASPP's output by the last stage; hanet2 its
    projection by ASPP's output; hanet3 the decoder's features by its input; hanet4 the logits by
    the decoder's features, with max pooling. Each uses the gated output of the one before it.
    """

    def __init__(
        self,
        channels: Channels,
        num_classes: int,
        rates: Sequence[int],
        slots: Sequence[bool],
        attention: dict[str, Any],
        *,
        align_corners: bool,
        global_norm: bool,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        width, decoder = COARSE_CHANNELS, FINE_CHANNELS + COARSE_CHANNELS
        self.aspp = ASPP(
            channels[3], rates, width=width, global_norm=global_norm, norm_layer=norm_layer
        )
        together = self.aspp.out_channels
        self.bot_fine = conv_unit(channels[0], FINE_CHANNELS, 1, norm_layer)
        self.bot_aspp = conv_unit(together, width, 1, norm_layer)
        self.final1 = nn.Sequential(
            *conv_unit(decoder, width, 3, norm_layer), *conv_unit(width, width, 3, norm_layer)
        )
        self.final2 = nn.Sequential(nn.Conv2d(width, num_classes, 1))
        places = (
            (channels[2], channels[3]),
            (channels[3], together),
            (together, width),
            (decoder, width),
            (width, num_classes),
        )
        self.hanet0, self.hanet1, self.hanet2, self.hanet3 = (
            HeightAttention(before, after, **attention) if present else None
            for (before, after), present in zip(places[:4], slots[:4], strict=True)
        )
        maxima = {**attention, "pooling": "max"}
        self.hanet4 = HeightAttention(*places[4], **maxima) if slots[4] else None

    @tracing.one_call
    def forward(self, features: tuple[Tensor, ...], pos: Tensor | None) -> Tensor:
        first, _, third, fourth = features
        fourth = _gate(self.hanet0, third, fourth, pos)
        coarse = self._coarse(fourth, pos)
        final = self._decoder(self.bot_fine(first), coarse, pos)
        return _gate(self.hanet4, final, self.final2(final), pos)

    def _decoder(self, fine: Tensor, coarse: Tensor, pos: Tensor | None) -> Tensor:
        """`final1` of the concatenated maps, gated by hanet3. The first convolution uses the coarse
        map at its own size."""
        final = over_pyramid(self.final1, fine, [coarse], self.align_corners)
        if self.hanet3 is None:
            return final
        together = functional.pyramid_concat(fine, [coarse], align_corners=self.align_corners)
        return self.hanet3(together, final, pos)

    def _coarse(self, fourth: Tensor, pos: Tensor | None) -> Tensor:
        """ASPP and its projection, with the attentions between them."""
        if self.hanet1 is None and self.hanet2 is None:
            conv, norm, relu = self.bot_aspp
            return relu(norm(self.aspp.before(cast(nn.Conv2d, conv), fourth)))
        together = _gate(self.hanet1, fourth, self.aspp(fourth), pos)
        return _gate(self.hanet2, together, self.bot_aspp(together), pos)


def _gate(layer: nn.Module | None, x: Tensor, out: Tensor, pos: Tensor | None) -> Tensor:
    return out if layer is None else layer(x, out, pos)


class DeepLabHANet(SegmentationNetwork):
    """DeepLabv3+ with height attention. `deeplabv3plus_hanet` makes one."""

    layouts = (upstream.SEMSEG.plus((_OWN, r"head.\1.")),)

    def decode(self, features: tuple[Tensor, ...], pos: Tensor | None = None) -> dict[str, Tensor]:
        return {"out": self.head(features, pos)}

    def forward(  # type: ignore[override]
        self, x: Tensor, pos: Tensor | None = None, resize: bool = True
    ) -> dict[str, Tensor]:
        features = self.extract(x)
        return self.collect(x, features, self.decode(features, pos), resize)

    if TYPE_CHECKING:

        def __call__(
            self, x: Tensor, pos: Tensor | None = None, *, resize: bool = True
        ) -> dict[str, Tensor]: ...


@register
def deeplabv3plus_hanet(
    num_classes: int,
    backbone: str | Backbone = "resnet50",
    *,
    backbone_weights: Weights | None = None,
    aux: bool = True,
    output_stride: int = 8,
    dilation: str = "uniform",
    rates: Sequence[int] | None = None,
    slots: Sequence[bool] = (True, True, True, True, False),
    kernel_size: int = 3,
    reduction: int = 64,
    layers: int = 3,
    pooling: str = "mean",
    pos_rfactor: int = 8,
    pos_injection: int = 2,
    pos_encoding: str | None = "sinusoid",
    pos_noise: float = 0.0,
    symmetric_noise: bool = True,
    attention_dropout: float = 0.0,
    dropout: float = 0.1,
    enlarge_aux: bool = True,
    align_corners: bool = True,
    global_norm: bool = True,
    norm_layer: NormLayer = nn.BatchNorm2d,
) -> DeepLabHANet:
    """HANet's DeepLabv3+, as released by its authors.

    load_state_dict accepts upstream's checkpoints. Upstream's ResNet-50 is `resnet50` here, its
    ResNet-101 with a deep stem `resnet101s`. Upstream's option `hanet` is `slots`, `hanet_set` is
    (kernel_size, reduction, layers), and `hanet_pos` is (pos_injection, pos_encoding: 1 sinusoid, 0
    learned). Options that do not match the file are an error; upstream skips mismatched entries and
    runs with random attention. For upstream's auxiliary loss, which reduces the labels, use
    enlarge_aux=False here and shrink_aux=True in SegmentationLoss.

    Args:
        num_classes: K.
        backbone: see `create_backbone`.
        backbone_weights: the backbone's ImageNet weights, a path or a state_dict.
        aux: whether to add an auxiliary head on the third stage; upstream's `dsn`.
        output_stride: of the backbone: 8 is upstream's variant D, 4 D4, 16 D16, and 32 OS32.
        dilation: the backbone's dilation scheme.
        rates: the dilations of ASPP's three 3x3 convolutions; by default those of the output
            stride: (24, 48, 72) at 4, (12, 24, 36) at 8, (6, 12, 18) at 16, (3, 6, 9) at 32.
        slots: which of the five height attentions to use; see `HANetHead`.
        kernel_size, reduction, layers, pooling, pos_rfactor, pos_injection, pos_encoding,
            pos_noise, symmetric_noise: of all attentions; see `HeightAttention`.
        attention_dropout: the `dropout` of the attentions.
        dropout: before the auxiliary classifier, on whole channels.
        enlarge_aux: whether `aux` has the size of the image; otherwise that of the third stage.
        align_corners: of every resize of maps.
        global_norm: False gives ASPP's mean branch a bias instead of a norm, which permits training
            with batch size 1.
        norm_layer: creates all norms except those of the attentions.

    Shape:
        x (N, 3, H, W) of any size, and pos, the positions of its rows, (N, H, W) or (N, H):
        integers from 0 at the top of the uncropped image to 127 at the bottom, 128 for padding; or
        None, for attention without positions. To `out`, and in training `aux`, (N, K, H, W).

    Examples:
        >>> network = deeplabv3plus_hanet(19, "resnet18", output_stride=16)
        >>> heights = torch.arange(60).mul(128).div(60, rounding_mode="floor").expand(2, 60)
        >>> outputs = network(torch.randn(2, 3, 60, 75), heights)
        >>> {name: tuple(y.shape) for name, y in outputs.items()}
        {'out': (2, 19, 60, 75), 'aux': (2, 19, 60, 75)}
    """
    if len(slots) != 5:
        raise ValueError(f"deeplabv3plus_hanet: slots must be five booleans, got {slots}")
    chosen = choose_rates("deeplabv3plus_hanet", rates, output_stride)
    attention: dict[str, Any] = {
        "kernel_size": kernel_size,
        "reduction": reduction,
        "layers": layers,
        "pooling": pooling,
        "pos_rfactor": pos_rfactor,
        "pos_injection": pos_injection,
        "pos_encoding": pos_encoding,
        "pos_noise": pos_noise,
        "symmetric_noise": symmetric_noise,
        "dropout": attention_dropout,
    }

    def make_head(channels: Channels) -> nn.Module:
        return HANetHead(
            channels,
            num_classes,
            chosen,
            slots,
            attention,
            align_corners=align_corners,
            global_norm=global_norm,
            norm_layer=norm_layer,
        )

    network = assemble(
        "deeplabv3plus_hanet",
        DeepLabHANet,
        make_head,
        num_classes,
        backbone,
        backbone_weights=backbone_weights,
        aux=aux,
        output_stride=output_stride,
        dilation=dilation,
        dropout=dropout,
        channel_dropout=True,
        aux_channels=512,
        aux_bias=True,
        align_corners=align_corners,
        norm_layer=norm_layer,
    )
    network.enlarge_aux = enlarge_aux
    return network
