"""``python -m benchmarks serve``: a decoder over HTTP, against static batching and during hot swaps."""
