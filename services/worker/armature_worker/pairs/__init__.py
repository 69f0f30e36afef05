"""Pairs by contrast: what is asked, the teachers, the screen, the labels, the report."""
