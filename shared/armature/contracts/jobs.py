"""Jobs: states, the transitions allowed between them, and how the API shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from armature.contracts.artifacts import ArtifactView, BlobRef, Parent
from armature.contracts.base import Contract, UnixSeconds, View, open_enum
from armature.contracts.errors import ErrorObject
from armature.contracts.specs import JobSpec
from armature.errors import InvalidTransition

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]

EventLevel = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics"]

JOB_TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    "queued": frozenset({"running", "cancelled"}),
    "running": frozenset({"queued", "succeeded", "failed", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
"""queued -> running is the claim; running -> queued is an expired lease with attempts left. The rest is final."""

TERMINAL_STATES = frozenset(state for state, following in JOB_TRANSITIONS.items() if not following)


def check_transition(current: JobState, target: JobState) -> None:
    """Refuse what :data:`JOB_TRANSITIONS` does not list.

    Raises:
        InvalidTransition: The move is not allowed (HTTP 409).
    """
    if target not in JOB_TRANSITIONS[current]:
        raise InvalidTransition(f"a job that is {current} can not become {target}", param="state")


Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16, description="a caller's own notes: up to 16 pairs"),
]


class JobCreateRequest(Contract):
    """Submit a job."""

    spec: JobSpec
    shared: bool = Field(False, description="let every tenant use the results; needs the platform scope")
    metadata: Metadata = Field(default_factory=dict)


class Progress(View):
    """Where a job is; ``step`` counts within the phase and never goes back within an attempt.

    A job that waits is in the phase ``queued``, one that succeeded in ``done``; one that failed or was cancelled stays
    where it ended.
    """

    phase: str = "queued"
    step: int = 0
    total_steps: int = 0

    @property
    def percent(self) -> float:
        """Share of the phase that is done, 0 to 100."""
        return 100 * self.step / self.total_steps if self.total_steps else 0.0


class JobCheckpoint(Contract):
    """Where a long job saved its position: a folder of files in the store, below ``prefix``."""

    step: int = Field(ge=0)
    prefix: str
    files: list[BlobRef]


class JobView(View):
    """A job as the API shows it."""

    id: str
    object: Literal["job"] = "job"
    kind: str
    state: Annotated[str, open_enum(JobState)]
    cancel_requested: bool
    shared: bool
    attempt: int
    max_attempts: int
    progress: Progress
    created_at: UnixSeconds
    started_at: UnixSeconds | None
    finished_at: UnixSeconds | None
    error: ErrorObject | None
    parents: list[Parent]
    artifacts: list[ArtifactView] = Field(description="empty until the job has succeeded")
    base_model_id: str | None = Field(None, description="the model that base_model.import registered")
    metadata: dict[str, str]
    spec: dict[str, Any]


class JobEventView(View):
    """One entry of a job's log; ``seq`` has no gaps."""

    seq: int
    object: Literal["job.event"] = "job.event"
    created_at: UnixSeconds
    level: Annotated[str, open_enum(EventLevel)]
    type: Annotated[str, open_enum(EventType)]
    message: str
    data: dict[str, Any]
