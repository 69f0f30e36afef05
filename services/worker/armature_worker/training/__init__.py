"""Training loops and their records: ARMs, and the fine-tuning that harm vectors come from."""
