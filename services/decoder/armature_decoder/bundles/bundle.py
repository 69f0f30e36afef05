"""A bundle in the cache: its states and the transitions between them, its leases, and its last attempt to load."""

from __future__ import annotations

import time
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

from armature.contracts.profiles import ProfileManifest
from armature.errors import ArmatureError
from armature_decoder.bundles.loader import LoadedBundle
from armature_decoder.engine.engine import Engine

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
"""``downloaded`` to ``absent``: no request waits for the bundle, and loading it would evict another. From ``failed`` a
bundle is loaded again after its back-off, or forgotten once no profile names it."""


def check_move(current: BundleState, to: BundleState) -> BundleState:
    """Return ``to`` if the table allows the transition.

    Raises:
        RuntimeError: It does not: a bug in the caller.
    """
    if to not in BUNDLE_TRANSITIONS[current]:
        raise RuntimeError(f"a bundle can not go from {current} to {to}")
    return to


@dataclass(frozen=True)
class Runtime:
    """A ready bundle: the model and the engine that runs it."""

    loaded: LoadedBundle
    engine: Engine


@dataclass(eq=False)
class Bundle:
    """The (checkpoint, harm vector, adapter) of a profile version. Changed only under the cache's lock."""

    manifest: ProfileManifest
    key: str
    state: BundleState = "absent"
    leases: int = 0
    may_evict: bool = False
    """Worth pushing out an idle bundle for, even while nobody waits."""
    last_used: float = 0.0
    bytes: int = 0
    """What its adapter takes and what it works with, from the moment that the room is set aside."""
    attempts: int = 0
    retry_at: float = 0.0
    error: ArmatureError | None = None
    runtime: Runtime | None = None
    claims: ExitStack = field(default_factory=ExitStack)
    """Gives back what it claims: files on the disk, and the dense weights that it shares."""
    settled: Future[Runtime] = field(default_factory=Future)
    """The outcome of the attempt that is under way."""

    def move(self, to: BundleState) -> None:
        """Change the state along the table of transitions."""
        self.state = check_move(self.state, to)

    def begin(self) -> None:
        """A new attempt to load."""
        self.move("downloading")
        self.settled = Future()
        self.settled.set_running_or_notify_cancel()  # a waiter that gives up must not cancel it for the others

    def succeed(self, runtime: Runtime) -> None:
        """Loaded and checked."""
        self.move("ready")
        self.runtime, self.error, self.attempts = runtime, None, 0
        self.settled.set_result(runtime)

    def fail(self, error: ArmatureError, back_off: float) -> None:
        """Remember why, and not to try again before ``back_off`` seconds have passed."""
        self.move("failed")
        self.bytes, self.attempts = 0, self.attempts + 1
        self.retry_at = time.monotonic() + back_off
        self.error = error
        self.settled.set_exception(error)

    @property
    def wants_load(self) -> bool:
        """Not loaded, not on the way, and not in its back-off."""
        return self.state == "absent" or (self.state == "failed" and time.monotonic() >= self.retry_at)
