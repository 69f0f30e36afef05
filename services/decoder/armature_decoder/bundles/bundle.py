"""A bundle in the cache: its states and their transitions, its leases, its last attempt to load."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from armature.contracts.profiles import ProfileManifest
from armature.errors import ArmatureError, ModelUnloadable, Unavailable
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
    """The model of a ready bundle and the engine that runs it."""

    loaded: LoadedBundle
    engine: Engine


class BundleStatus(NamedTuple):
    """A bundle's state, and for its operator why it is not loaded, if an attempt found out."""

    state: BundleState
    reason: str | None = None


@dataclass(eq=False)
class Bundle:
    """The (checkpoint, harm vector, adapter) of a profile version, changed only under the cache's lock."""

    manifest: ProfileManifest
    key: str
    state: BundleState = "absent"
    leases: int = 0
    may_evict: bool = False
    """Whether loading it may evict an idle bundle even while no request waits for it."""
    last_used: float = 0.0
    bytes: int = 0
    """Memory of its adapter, keys, values and prefixes; 0 until it is reserved."""
    attempts: int = 0
    retry_at: float = 0.0
    error: ArmatureError | None = None
    runtime: Runtime | None = None
    claims: ExitStack = field(default_factory=ExitStack)
    """Releases its claims on files on disk and on shared dense weights."""
    settled: Future[Runtime] = field(default_factory=Future)
    """The outcome of the current or last attempt to load it."""

    def move(self, to: BundleState) -> None:
        """Change the state; raises as :func:`check_move` does."""
        self.state = check_move(self.state, to)

    def begin(self) -> None:
        """Start an attempt to load."""
        self.move("downloading")
        self.settled = Future()
        self.settled.set_running_or_notify_cancel()  # else a waiter that gives up cancels it for the others

    def succeed(self, runtime: Runtime) -> None:
        """Record that the bundle is loaded and checked."""
        self.move("ready")
        self.runtime, self.error, self.attempts = runtime, None, 0
        self.settled.set_result(runtime)

    def fail(self, error: ArmatureError, back_off: float) -> None:
        """Record why the load failed; no other attempt starts within ``back_off`` seconds."""
        self.move("failed")
        self.bytes, self.attempts = 0, self.attempts + 1
        self.retry_at = time.monotonic() + back_off
        self.error = error
        self.settled.set_exception(error)

    @property
    def is_broken(self) -> bool:
        """Whether it counts as ready and its engine has stopped by itself."""
        return self.state == "ready" and self.runtime is not None and self.runtime.engine.has_failed

    def replacement(self, back_off: float) -> Bundle:
        """Make a failed bundle of the same parts, for the place of this one, which is broken."""
        bundle = Bundle(self.manifest, self.key)
        bundle.begin()
        bundle.fail(Unavailable("the model has failed and will be loaded again"), back_off)
        return bundle

    @property
    def status(self) -> BundleStatus:
        """The state, and why the last attempt did not load it."""
        return BundleStatus(self.state, None if self.error is None else self.error.message)

    @property
    def wants_load(self) -> bool:
        """Whether it is neither loaded, nor being loaded, nor backing off."""
        return self.state == "absent" or (self.state == "failed" and time.monotonic() >= self.retry_at)


def for_caller(error: ArmatureError) -> ArmatureError:
    """Convert why a bundle is not loaded into what a request is told: its caller can not mend the parts."""
    if isinstance(error, Unavailable):
        return copy_of(error)
    return ModelUnloadable("the model can not be loaded; its operator finds the reason in GET /v1/models")


def copy_of(error: ArmatureError) -> ArmatureError:
    """Make a fresh instance of ``error`` to raise.

    An exception's traceback keeps the loaded tensors of its frames alive.
    """
    return type(error)(error.message, param=error.param, code=error.error_code)


class BundleLease:
    """A request's claim on a bundle, which is not unloaded meanwhile. Release it exactly once."""

    def __init__(self, bundle: Bundle, release: Callable[[Bundle], None]) -> None:
        self._bundle = bundle
        self._release = release

    @property
    def settled(self) -> Future[Runtime]:
        """Future of the ready bundle; it raises why the bundle could not be loaded."""
        return self._bundle.settled

    def release(self) -> None:
        """End the claim; a draining bundle is unloaded after its last one."""
        self._release(self._bundle)
