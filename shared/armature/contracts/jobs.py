"""Jobs: states, the transitions allowed between them, and how the API shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from armature.contracts.artifacts import ArtifactView, BlobRef, Parent
from armature.contracts.base import Contract, Sha256, UnixSeconds, View, open_enum
from armature.contracts.errors import ErrorObject
from armature.contracts.specs import JobSpec
from armature.errors import InvalidTransition, JobAlreadyFinished

JobState = Literal["queued", "running", "paused", "cancelling", "succeeded", "failed", "cancelled"]

EventLevel = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics"]

JOB_TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    "queued": frozenset({"running", "paused", "cancelled"}),
    "running": frozenset({"queued", "paused", "cancelling", "succeeded", "failed"}),
    "paused": frozenset({"queued", "cancelled"}),
    "cancelling": frozenset({"cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
"""queued -> running is the claim, running -> queued an attempt that ended without deciding anything.

Every way out of ``cancelling`` leads to ``cancelled``, so a cancelled job can not publish.
"""

TERMINAL_STATES = frozenset(state for state, following in JOB_TRANSITIONS.items() if not following)
ACTIVE_STATES = tuple(state for state in JOB_TRANSITIONS if state not in TERMINAL_STATES)


def check_transition(current: JobState, target: JobState) -> None:
    """Refuse what :data:`JOB_TRANSITIONS` does not list.

    Raises:
        JobAlreadyFinished: The job is over (HTTP 409).
        InvalidTransition: The move is not allowed (HTTP 409).
    """
    if current in TERMINAL_STATES:
        raise JobAlreadyFinished(f"the job is over: it is {current}", param="state")
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


class JobRetryRequest(Contract):
    """Submit a failed or cancelled job again, as a new job."""

    from_checkpoint: bool = Field(True, description="go on from the newest checkpoint, if one is kept")
    metadata: Metadata | None = Field(None, description="of the new job; by default the old one's")


class Progress(View):
    """How far a job is. ``percent`` covers the whole job, over all phases and attempts, and never goes back.

    ``step`` counts within the phase.
    """

    percent: float = 0.0
    step: int = 0
    total_steps: int = 0
    eta_seconds: int | None = Field(None, description="estimated at updated_at; null until there is a rate")
    updated_at: UnixSeconds | None = None


class JobCheckpoint(Contract):
    """Where a long job saved its position: a folder of files in the store, below ``prefix``."""

    step: int = Field(ge=0)
    prefix: str
    files: list[BlobRef]
    saved_at: UnixSeconds | None = None

    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


class JobView(View):
    """A job as the API shows it."""

    id: str
    object: Literal["job"] = "job"
    kind: str
    state: Annotated[str, open_enum(JobState)]
    phase: str = Field(description="queued or paused while it waits, done once it succeeded, else the kind's own")
    progress: Progress
    pause_requested: bool = Field(description="its worker was told, and saves a checkpoint first")
    queue_position: int | None = Field(
        description="among the tenant's own: 1 is next; null if not queued or beyond 1,000"
    )
    shared: bool
    attempt: int
    max_attempts: int
    retried_from: str | None = Field(description="the failed or cancelled job that this one repeats")
    created_at: UnixSeconds
    started_at: UnixSeconds | None
    finished_at: UnixSeconds | None
    estimated_finish: UnixSeconds | None
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


class JobCheckpointView(View):
    """A save that the job, or a retry of it, goes on from."""

    id: str
    object: Literal["job.checkpoint"] = "job.checkpoint"
    job_id: str
    created_at: UnixSeconds
    step_number: int
    bytes: int
    sha256: Sha256 = Field(description="over the list of its files and their hashes")
    resumable: Literal[True] = True
