"""The parts of `make demo`: strip pooling on one image, a network before and after fuse, and the
training of a small network."""
