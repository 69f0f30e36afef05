"""Models that jobs train or evaluate: the backbone, with or without a harm vector, and the ARM on it."""
