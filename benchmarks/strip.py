"""The strip family at SPNet's shapes: strip pooling modules on a crop of 480 (ADE20K), stages 4 and
1, and on one of 768 (Cityscapes), stage 4; and mixed pooling in the head."""

import sys

from benchmarks.family import Family

STAGES = ((1, 512, 60, 60), (1, 64, 120, 120), (1, 512, 96, 96))
LARGE = (2, 512, 96, 96)

FAMILY = Family(
    "strip",
    {
        "strip_pool": (*STAGES, LARGE),
        "strip_add_relu": STAGES,
        "sigmoid_gate": STAGES,
        "strip_gate": STAGES,
        "StripPooling": STAGES[:1],
        "MixedPooling": ((1, 1024, 60, 60),),
    },
)

if __name__ == "__main__":
    sys.exit(FAMILY.main())
