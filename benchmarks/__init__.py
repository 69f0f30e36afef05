"""Ratios against named peers, measured in one run on this machine: ``python -m benchmarks`` from a checkout."""
