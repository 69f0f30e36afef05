"""The worker service: it claims jobs, runs their recipes and publishes what they make."""
