"""How a process without HTTP shows that it works: it touches a file, whose age a container's health check looks at."""

from __future__ import annotations

from armature.settings import LivenessSettings

LIVENESS_INTERVAL = 5.0
"""Seconds between two signs of life, at least; a check allows for several."""


def show_life(settings: LivenessSettings) -> None:
    """Touch the file, if there is to be one. Call it from the loop that must not hang."""
    if settings.file is not None:
        settings.file.touch()
