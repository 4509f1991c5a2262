"""The encoding family at EncNet's shapes: crops of 480 and 576 (ADE20K), of 512 x 1024 (Cityscapes)
and two of 769, above 32 MB; and at Deep TEN's, 16 images of 224."""

import sys

from benchmarks.family import Family

SHAPES = ((1, 512, 60, 60), (1, 512, 72, 72), (1, 512, 64, 128), (16, 128, 7, 7))
LARGE = (2, 512, 97, 97)

FAMILY = Family(
    "encoding",
    {
        "encode": (*SHAPES, LARGE),
        "channel_gate": (*SHAPES[:3], LARGE),
        "EncodingLayer": (SHAPES[0], SHAPES[3]),
        "ContextEncoding": SHAPES[:1],
    },
)

if __name__ == "__main__":
    sys.exit(FAMILY.main())
