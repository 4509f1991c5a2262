"""What `make demo` shows: strip pooling on one picture, then a small network that is trained."""
