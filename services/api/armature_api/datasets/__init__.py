"""Data sets: uploaded files of rows under a format."""
