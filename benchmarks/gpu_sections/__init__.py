"""The sections of `benchmarks/gpu.py`, one file for each group."""
