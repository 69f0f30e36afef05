"""The demo: an invented world, and the main job on it through the REST API."""
