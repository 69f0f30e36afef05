"""The life of a bundle: its states, and the moves between them as a table."""

from __future__ import annotations

from typing import Literal

BundleState = Literal["absent", "downloading", "downloaded", "loading", "ready", "draining", "failed"]

BUNDLE_TRANSITIONS: dict[BundleState, frozenset[BundleState]] = {
    "absent": frozenset({"downloading"}),
    "downloading": frozenset({"downloaded", "failed"}),
    "downloaded": frozenset({"loading", "absent", "failed"}),
    "loading": frozenset({"ready", "failed"}),
    "ready": frozenset({"draining", "failed"}),
    "draining": frozenset({"absent", "failed"}),
    "failed": frozenset({"downloading", "absent"}),
}
"""From ``downloaded`` back to ``absent``: nobody waits for it and it would push out another. From ``failed`` a bundle
is tried again when its back-off is over, or forgotten when nothing names it any more."""


def check_move(current: BundleState, to: BundleState) -> BundleState:
    """``to``, if the table allows it.

    Raises:
        RuntimeError: It does not: a bug in the caller, never a user's doing.
    """
    if to not in BUNDLE_TRANSITIONS[current]:
        raise RuntimeError(f"a bundle can not go from {current} to {to}")
    return to
