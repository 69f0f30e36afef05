"""The audit log: an entry per change, chained by hashes."""
