"""The labels family: logits of Cityscapes' 19 classes at 1/8 of half its image size, of ADE20K's
150 at 1/4 of 512 x 512 (SegFormer, UPerNet) and at 1/8 of 473 x 473 (PSPNet)."""

import sys

from benchmarks.family import Family

CITYSCAPES, ADE20K, ADE20K_PSPNET = (1, 19, 512, 1024), (1, 150, 512, 512), (1, 150, 473, 473)
LINES = (CITYSCAPES, ADE20K, ADE20K_PSPNET)
BATCH = (16, *ADE20K_PSPNET[1:])  # PSPNet's training batch

FAMILY = Family(
    "labels",
    {
        "upsample_cross_entropy": (*LINES, BATCH),
        "upsample_argmax": LINES,
        "upsample_softmax_max": (CITYSCAPES,),
        "upsample_binary_cross_entropy": ((1, 1, 512, 1024),),
        "upsample_dice": (CITYSCAPES,),
    },
    compile_all=True,
)

if __name__ == "__main__":
    sys.exit(FAMILY.main())
