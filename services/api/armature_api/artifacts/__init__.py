"""Artifacts: manifests, files, verification, retention and lineage."""
