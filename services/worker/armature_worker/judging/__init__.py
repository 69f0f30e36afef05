"""Judges behind one port: which of two answers has more of an attribute, their origin unseen."""
