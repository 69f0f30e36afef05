"""Generation as most tests want it: token ids alone."""

from __future__ import annotations

from collections.abc import Sequence

from armature.inference.batch import sample_sequences
from armature.inference.model import GuidedModel
from armature.inference.request import GuidedRequest


def generate_guided(model: GuidedModel, requests: Sequence[GuidedRequest], max_slots: int = 64) -> list[list[int]]:
    """Generate all requests; returns the new token ids of each, without the end-of-sequence token."""
    sequences = sample_sequences(model, requests, max_slots)
    return [[token.token for token in sequence if token.finish_reason != "stop"] for sequence in sequences]
