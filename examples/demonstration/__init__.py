"""What `make demo` shows: strip pooling on one picture, a network before and after fuse, and a
small network that is trained."""
