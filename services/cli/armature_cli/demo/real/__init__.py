"""The demo on a real model: its data."""
