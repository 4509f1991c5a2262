"""Pyramid pooling at PSPNet's shapes: crops of 473 and 713, and the first with half the channels,
whose concatenation stays below 32 MB. PyramidPoolingConv is PSPNet's head, from pooling to the
bottleneck's output."""

import sys

from benchmarks.family import Family

CROP_473, CROP_713 = (1, 2048, 60, 60), (1, 2048, 90, 90)
HALF, QUARTER = (1, 1024, 60, 60), (1, 512, 60, 60)

FAMILY = Family(
    "pyramid",
    {
        "pyramid_pool": (CROP_473, HALF, CROP_713),
        "PyramidPooling": (HALF, CROP_473),
        "PyramidPoolingConv": (CROP_473, QUARTER),
    },
    variants={"PyramidPoolingConv": QUARTER},
)

if __name__ == "__main__":
    sys.exit(FAMILY.main())
