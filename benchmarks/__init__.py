"""``python -m benchmarks``: ratios against named peers, measured in one run on this machine.

A module or a folder per benchmark beside what they share; that is why it holds more than a dozen.
"""
