"""Armature: harm vectors, preference-conditioned reward models and guided decoding as a platform."""

__version__ = "0.1.0"
