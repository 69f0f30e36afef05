"""``python -m benchmarks``: ratios against named peers, measured in one run on this machine."""
