"""Bundles of a checkpoint, a harm vector and an adapter.

They are fetched to disk, verified, loaded, shared, leased and evicted.
"""
