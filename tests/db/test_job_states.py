"""docs/job-states.md draws the transitions that the code allows. After a change: python -m tests.db.test_job_states."""

from pathlib import Path

import pytest

from armature.contracts.jobs import JOB_TRANSITIONS, TERMINAL_STATES, check_transition
from armature.errors import InvalidTransition

PAGE = Path(__file__).parents[2] / "docs/job-states.md"

CAUSES = {
    ("queued", "running"): "a worker claims it",
    ("queued", "paused"): "pause",
    ("queued", "cancelled"): "cancel",
    ("running", "queued"): "the lease expired, or the worker gave it back",
    ("running", "paused"): "pause, after a checkpoint",
    ("running", "cancelling"): "cancel",
    ("running", "succeeded"): "published",
    ("running", "failed"): "an error, or no attempt left",
    ("paused", "queued"): "resume",
    ("paused", "cancelled"): "cancel",
    ("cancelling", "cancelled"): "its worker stops, or is lost",
}


def render() -> str:
    """The page."""
    edges = [
        f"    {source} --> {target}: {CAUSES[source, target]}"
        for source, targets in JOB_TRANSITIONS.items()
        for target in sorted(targets)
    ]
    ends = [f"    {state} --> [*]" for state in sorted(TERMINAL_STATES)]
    diagram = ["```mermaid", "stateDiagram-v2", "    [*] --> queued", *edges, *ends, "```"]
    text = [
        "# The states of a job",
        "",
        "Drawn from `JOB_TRANSITIONS` in `armature.contracts.jobs`; a test compares the two. Each transition is one",
        "guarded `UPDATE` in `armature.db.transitions`; final states have none.",
        "",
        "- `cancelling` leads to `cancelled` only: a worker that publishes or fails at that moment has no effect.",
        "- A pause does not count as an attempt, nor does a worker's orderly shutdown: the next attempt resumes from",
        "  the newest checkpoint with an intact hash. A job whose kind saves no checkpoints is paused only while",
        "  queued.",
        "- A pause or a cancellation that no worker reads takes effect when the lease expires.",
        "- `retry` is no transition: it submits a failed or cancelled job again, as a new job that names it under",
        "  `retried_from`.",
        "",
    ]
    return "\n".join([*text, *diagram, ""])


def test_the_page_shows_the_transitions():
    assert PAGE.read_text(encoding="utf-8") == render()


@pytest.mark.parametrize("final", sorted(TERMINAL_STATES))
@pytest.mark.parametrize("target", sorted(JOB_TRANSITIONS))
def test_final_states_are_never_left(final, target):
    with pytest.raises(InvalidTransition, match=final):
        check_transition(final, target)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
