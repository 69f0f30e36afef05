"""Bundles (checkpoint, harm vector, adapter): fetched to disk, verified, loaded, shared, leased and evicted."""
