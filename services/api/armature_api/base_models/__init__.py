"""Base models: names and aliases of checkpoints."""
