"""Benchmarks: floors, peers, timing, peak memory, tables. `python -m pytest benchmarks` runs
them."""
