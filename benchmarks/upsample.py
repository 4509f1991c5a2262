"""Interpolated pyramids at PSPNet's and SPNet's shapes: a crop of 473 with all channels, with half
of them, whose concatenation stays below 32 MB, and with a quarter; and the short-range path of
mixed pooling on crops of 480 and 768."""

import sys

from benchmarks.family import Family

WHOLE, HALF, QUARTER = (1, 2048, 60, 60), (1, 1024, 60, 60), (1, 512, 60, 60)

FAMILY = Family(
    "upsample",
    {
        "pyramid_concat": (HALF, QUARTER, WHOLE),
        "pyramid_add": ((1, 256, 60, 60), (1, 256, 96, 96)),
        "pyramid_add_relu": ((1, 256, 60, 60), (1, 256, 96, 96)),
        "pyramid_conv": (WHOLE, QUARTER),
    },
    variants={"pyramid_conv": QUARTER},
)

if __name__ == "__main__":
    sys.exit(FAMILY.main())
