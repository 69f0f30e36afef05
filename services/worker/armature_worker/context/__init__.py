"""The ports that a recipe sees, a local implementation of them, and the provenance of outputs."""
