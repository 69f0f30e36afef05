"""Profiles: immutable versions, aliases and promotion gates."""
