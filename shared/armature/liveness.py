"""Liveness of processes without HTTP: they touch a file, whose age a container's health check reads."""

from __future__ import annotations

from armature.settings import LivenessSettings

LIVENESS_INTERVAL = 5.0
"""Seconds between two touches; a health check should allow several intervals."""


def show_life(settings: LivenessSettings) -> None:
    """Touch the file, if one is configured. Call it from the loop that must not hang."""
    if settings.file is not None:
        settings.file.touch()
