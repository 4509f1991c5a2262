"""The height family at HANet's shapes on a crop of 768: layers 0, 1 and 2 at output stride 16;
layer 2 and, above 32 MB, layer 0 at output stride 8."""

import sys

from benchmarks.family import Family

SHAPES = ((1, 2048, 48, 48), (1, 1280, 48, 48), (1, 256, 96, 96))
LARGE = (1, 2048, 96, 96)

FAMILY = Family(
    "height",
    {
        "row_pool": (*SHAPES, LARGE),
        "row_gate": (*SHAPES, LARGE),
        "HeightAttention": SHAPES[:1],
    },
)

if __name__ == "__main__":
    sys.exit(FAMILY.main())
