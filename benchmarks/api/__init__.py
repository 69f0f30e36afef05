"""``python -m benchmarks api``: latency of the control plane when its tables are full."""
