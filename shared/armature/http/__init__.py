"""The HTTP layer of both services: app factory, error envelope, request ids, limits, keys, metrics."""
