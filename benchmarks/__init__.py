"""``python -m benchmarks``: ratios against named peers, measured in one run on this machine.

A module or folder for each command beside what several share: that is why it holds more than a dozen.
"""
