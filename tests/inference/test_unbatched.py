"""Where frequencies move with the length, each request is what it is alone, however long the others are or were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from armature.inference.model import GuidedModel, start_runner
from armature.inference.transformers.runner import TransformersRunner
from armature.modeling.adapters.peft_pblora import preferences
from tests.support.adapters import add_random_adapter
from tests.support.rows import TwinLogits, TwinRows, join_rows
from tests.support.tiny_models import tiny_family

ATTRIBUTES = ("empathy", "truthfulness")
PREFERENCE = [0.25, 0.75]
SHORT, MIDDLE, LONG = [5, 6, 7], list(range(3, 23)), list(range(3, 60))
ORIGINAL = 16
ROPE: dict[str, dict[str, Any]] = {
    "dynamic": {"factor": 4.0},
    "longrope": {
        "factor": 8.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": ORIGINAL,
    },
}


def adapted(kind: str) -> PreTrainedModel:
    rope = {"rope_type": kind, "rope_theta": 10_000.0, **ROPE[kind]}
    base = tiny_family("llama", rope_parameters=rope, max_position_embeddings=ORIGINAL)
    return add_random_adapter(base, list(ATTRIBUTES))


def start(kind: str) -> TwinRows:
    return TwinRows(start_runner(GuidedModel(adapted(kind), frozenset({-1}), 259, ATTRIBUTES, "reference")))


@torch.inference_mode()
def assert_whole(kind: str, logits: TwinLogits, slot: int, ids: list[int], weights: list[float] | None) -> None:
    """The same as one forward pass of a model that has seen nothing else."""
    for found, gate in ((logits.safe[slot], False), (logits.arm[slot], weights is not None)):
        model = adapted(kind)
        with preferences(model, torch.tensor([weights or PREFERENCE]), gate=torch.tensor([gate])):
            torch.testing.assert_close(found, model(torch.tensor([ids])).logits[0, -1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ROPE)
def test_prompts_are_those_of_a_forward_pass_of_their_own(kind: str) -> None:
    rows, prompts, weights = start(kind), [SHORT, LONG, MIDDLE], [PREFERENCE, None, PREFERENCE]
    assert isinstance(rows.runner, TransformersRunner)
    logits = join_rows(rows, prompts, weights, chunk=4)
    for slot, (ids, weight) in enumerate(zip(prompts, weights, strict=True)):
        assert_whole(kind, logits, slot, ids, weight)
    assert len(rows) == 3


@pytest.mark.parametrize("kind", ROPE)
def test_steps_do_not_depend_on_present_or_past_neighbours(kind: str) -> None:
    alone = start(kind)
    join_rows(alone, [MIDDLE], [PREFERENCE])
    rows = start(kind)
    join_rows(rows, [LONG, MIDDLE], [None, PREFERENCE])
    for token in range(30, 34):
        expected = alone.step(torch.tensor([token]))
        found = rows.step(torch.tensor([token] * len(rows)))
        assert all(torch.equal(found[stream][-1], expected[stream][0]) for stream in (0, 1))
        rows.keep([len(rows) - 1])
    rows.keep([])
    assert_whole(kind, join_rows(rows, [SHORT], [None]), 0, SHORT, None)
