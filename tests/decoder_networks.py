"""Small networks with decoders from other packages, with random weights, and what `fuse` should
find in each. Networks of packages that are not installed are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import oracles
import unets
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    convolutions: int  # convolutions over a concatenation that includes levels
    sums: int = 0  # sums that include levels
    size: tuple[int, int] = (64, 64)
    compiles: bool = True  # with fullgraph, before fusing
    exports: bool = True


def smp(name: str, encoder: str = "tu-test_resnet", **options: Any) -> nn.Module:
    kind = getattr(oracles.whole_smp(), name)
    return kind(encoder, encoder_weights=None, classes=3, **options)


def huggingface(name: str, config: str, **options: Any) -> nn.Module:
    package = oracles.transformers()
    return getattr(package, name)(getattr(package, config)(num_labels=3, **options))


def huggingface_segformer(width: int) -> nn.Module:
    return huggingface(
        "SegformerForSemanticSegmentation", "SegformerConfig", depths=[1] * 4,
        hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=width,
    )  # fmt: skip


def huggingface_upernet(backbone: str, **options: Any) -> nn.Module:
    stages = [f"stage{i}" for i in (1, 2, 3, 4)]
    config = getattr(oracles.transformers(), backbone)(
        depths=[1] * 4, out_features=stages, **options
    )
    return huggingface(
        "UperNetForSemanticSegmentation", "UperNetConfig", backbone_config=config, hidden_size=16,
        auxiliary_in_channels=24, auxiliary_channels=8,
    )  # fmt: skip


def huggingface_vit(name: str) -> nn.Module:
    """BEiT and Data2Vec, which share a head."""
    return huggingface(
        f"{name}ForSemanticSegmentation", f"{name}Config", image_size=64, hidden_size=24,
        num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, out_indices=[1, 2, 3, 4],
        auxiliary_channels=8,
    )  # fmt: skip


def mmseg(backbone: dict[str, Any], head: dict[str, Any], neck: Any = None) -> nn.Module:
    norm = {"norm_cfg": {"type": "BN"}}
    config = {
        "type": "EncoderDecoder",
        "backbone": {**norm, **backbone},
        "decode_head": {"num_classes": 3, "channels": 8, "align_corners": False, **norm, **head},
    }
    return oracles.mmseg().MODELS.build(config | ({"neck": {**norm, **neck}} if neck else {}))


class Stages(nn.Module):
    """A backbone of four convolutions, to maps of 4, 8, 16 and 32 channels."""

    def __init__(self, strides: tuple[int, ...] = (4, 2, 2, 2), **_: Any) -> None:
        super().__init__()
        widths = (3, 4, 8, 16, 32)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
            for a, b, stride in zip(widths, widths[1:], strides, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


STAGES = {"type": Stages}
DILATED = {"type": Stages, "strides": (4, 2, 1, 1)}
RESNET = {
    "type": "ResNetV1c", "depth": 18, "base_channels": 4, "strides": (1, 2, 1, 1),
    "dilations": (1, 1, 2, 4), "contract_dilation": True,
}  # fmt: skip
FOUR = {"in_channels": [4, 8, 16, 32], "in_index": [0, 1, 2, 3]}


def hrnet_stage(modules: int, branches: int, block: str = "BASIC") -> dict[str, Any]:
    return {
        "num_modules": modules,
        "num_branches": branches,
        "block": block,
        "num_blocks": (1,) * branches,
        "num_channels": (4, 8, 16, 32)[:branches],
    }


HRNET = {
    "type": "HRNet",
    "extra": {
        "stage1": hrnet_stage(1, 1, "BOTTLENECK"),
        "stage2": hrnet_stage(1, 2),
        "stage3": hrnet_stage(1, 3),
        "stage4": hrnet_stage(1, 4),
    },
}
ICNET = {
    "type": "ICNet",
    "backbone_cfg": {**RESNET, "norm_cfg": {"type": "BN"}},
    "in_channels": 3,
    "layer_channels": (8, 32),
    "light_branch_middle_channels": 8,
    "psp_out_channels": 16,
    "out_channels": (8, 12, 16),
}
FAST_SCNN = {
    "type": "FastSCNN",
    "downsample_dw_channels": (8, 12),
    "global_in_channels": 16,
    "global_block_channels": (16, 24, 32),
    "global_out_channels": 32,
    "higher_in_channels": 16,
    "lower_in_channels": 32,
    "fusion_out_channels": 32,
}
WIDTHS = (32, 32, 32, 16, 16)  # of smp's decoders, instead of 256 to 16
SMP = {
    "Unet nearest": (lambda: smp("Unet", decoder_channels=WIDTHS), 5, 0),
    "Unet bilinear": (
        lambda: smp("Unet", decoder_channels=WIDTHS, decoder_interpolation="bilinear"),
        5,
        0,
    ),
    "UnetPlusPlus": (lambda: smp("UnetPlusPlus", decoder_channels=WIDTHS), 11, 0),
    "FPN": (
        lambda: smp("FPN", decoder_pyramid_channels=32, decoder_segmentation_channels=32),
        3,
        3,
    ),
    "PAN": (lambda: smp("PAN"), 0, 6, (128, 128)),
    "MAnet": (lambda: smp("MAnet", decoder_channels=WIDTHS), 1, 0),
    "Linknet": (lambda: smp("Linknet"), 0, 0),
    "DeepLabV3Plus": (lambda: smp("DeepLabV3Plus", decoder_channels=32), 1, 0),
    "PSPNet": (lambda: smp("PSPNet", psp_out_channels=32), 1, 0),
    "UPerNet": (lambda: smp("UPerNet", decoder_channels=32), 2, 3),
    "UPerNet MiT": (lambda: smp("UPerNet", "mit_b0", decoder_channels=32), 2, 3),
    "Segformer": (lambda: smp("Segformer", decoder_segmentation_channels=32), 1, 0),
    "Segformer MiT": (
        lambda: smp("Segformer", "mit_b0", decoder_segmentation_channels=32),
        1,
        0,
    ),
}
TRANSFORMERS = {
    "SegFormer 256": (lambda: huggingface_segformer(256), 1, 0),
    "SegFormer 768": (lambda: huggingface_segformer(768), 1, 0),
    "UperNet ConvNeXt": (
        lambda: huggingface_upernet("ConvNextConfig", hidden_sizes=[8, 16, 24, 32]),
        2,
        3,
    ),
    "UperNet Swin": (
        lambda: huggingface_upernet(
            "SwinConfig", image_size=64, embed_dim=6, num_heads=[1, 1, 2, 2], window_size=4
        ),
        2,
        3,
    ),
    "BEiT": (lambda: huggingface_vit("Beit"), 2, 3),
    "Data2Vec": (lambda: huggingface_vit("Data2VecVision"), 2, 3),
}
MMSEG = {
    "SegformerHead": (lambda: mmseg(STAGES, {"type": "SegformerHead", **FOUR}), 1, 0),
    "UPerHead": (lambda: mmseg(STAGES, {"type": "UPerHead", **FOUR}), 2, 3),
    "HRNet": (
        lambda: mmseg(
            HRNET,
            {
                "type": "FCNHead",
                **FOUR,
                "input_transform": "resize_concat",
                "channels": 60,
                "kernel_size": 1,
                "num_convs": 1,
                "concat_input": False,
            },
        ),
        1,
        6,
    ),
    "LightHamHead": (
        lambda: mmseg(
            STAGES,
            {
                "type": "LightHamHead",
                "in_channels": [8, 16, 32],
                "in_index": [1, 2, 3],
                "ham_channels": 8,
                "ham_kwargs": {"MD_R": 4},
            },
        ),
        1,
        0,
    ),
    "ICNet": (
        lambda: mmseg(
            ICNET,
            {"type": "FCNHead", "in_channels": 8, "in_index": 2, "num_convs": 1,
             "concat_input": False},
            {"type": "ICNeck", "in_channels": (8, 12, 16), "out_channels": 8},
        ),
        3,
        0,
    ),
    "FastSCNN": (
        lambda: mmseg(
            FAST_SCNN,
            {"type": "DepthwiseSeparableFCNHead", "in_channels": 32, "in_index": -1,
             "concat_input": False},
        ),
        1,
        0,
    ),
    "FPNHead": (
        lambda: mmseg(STAGES, {"type": "FPNHead", **FOUR, "feature_strides": [4, 8, 16, 32]}),
        3,
        1,
    ),
    "separable ASPP": (
        lambda: mmseg(
            DILATED,
            {"type": "DepthwiseSeparableASPPHead", "in_channels": 32, "in_index": 3,
             "dilations": (1, 2, 4), "c1_in_channels": 4, "c1_channels": 6},
        ),
        1,
        0,
    ),
}  # fmt: skip
HOME_MADE = {
    "Padding": (1, 0), "Shapes": (2, 0), "UpFirst": (2, 0), "Functional": (1, 0), "Nested": (1, 0),
    "AllUp": (1, 0), "Sums": (0, 2), "Gated": (1, 0), "Left": (0, 0),
}  # fmt: skip


def timm_hrnet() -> nn.Module:
    return oracles.timm().create_model("hrnet_w18_small", features_only=True)


def torchvision_deeplab() -> nn.Module:
    models = oracles.torchvision().models
    resnet = models.resnet.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1])
    backbone = models._utils.IntermediateLayerGetter(resnet, {"layer3": "out"})
    head = models.segmentation.deeplabv3.DeepLabHead(256, 3)
    return models.segmentation.DeepLabV3(backbone, head)


CASES: dict[str, Case] = {
    **{f"smp {name}": Case(*one) for name, one in SMP.items()},
    **{f"transformers {name}": Case(*one) for name, one in TRANSFORMERS.items()},
    **{f"mmseg {name}": Case(*one) for name, one in MMSEG.items()},
    "timm HRNet": Case(timm_hrnet, 0, 6),
    "torchvision DeepLabV3": Case(torchvision_deeplab, 1),
    **{
        f"U-Net {kind.__name__}": Case(
            lambda kind=kind: unets.UNet(kind()),
            *HOME_MADE[kind.__name__],
            size=(36, 40) if kind is unets.UpFirst else (34, 44),
        )
        for kind in unets.DECODERS
    },
}
