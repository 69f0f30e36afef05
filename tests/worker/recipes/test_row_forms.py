"""The same data in any row form trains the same model, bit for bit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from armature.contracts.artifacts import TaskVectorMetadata
from armature.contracts.specs import parse_spec
from armature.errors import InvalidDataset
from armature_worker.context.ports import RecipeResult
from armature_worker.recipes.arm import run as train
from armature_worker.recipes.evaluation import run as evaluate
from armature_worker.recipes.harm_vector import run as build
from tests.support.recipe_world import DATA, World, arm_spec, evaluation_spec, harm_spec, tiny_world

ARM = arm_spec(attributes=["empathy"], training={"steps": 2, "batch_size": 3})
HARM = harm_spec(training={"steps": 2, "batch_size": 3, "max_length": 60})
TRIPLES = [
    (row["prompt"], *(row["responses"] if row["labels"]["empathy"] == 0 else row["responses"][::-1]))
    for row in DATA["pairs"]
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def rated(named: bool) -> list[dict[str, Any]]:
    judged: list[dict[str, Any]] = [{"scores": {"empathy": 2.5}}, {"scores": {"empathy": -1}}]
    if not named:
        judged = [{"label": True}, {"label": False}]
    return [
        {"prompt": prompt, "completion": text, **judgement}
        for prompt, *answers in TRIPLES
        for text, judgement in zip(answers, judged, strict=True)
    ]


PAIRS: dict[str, list[dict[str, Any]]] = {
    "chosen and rejected": [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in TRIPLES],
    "implicit prompt": [{"chosen": p + c, "rejected": p + r} for p, c, r in TRIPLES],
    "conversational": [{"prompt": user(p), "chosen": assistant(c), "rejected": assistant(r)} for p, c, r in TRIPLES],
    "conversational, implicit prompt": [
        {"chosen": user(p) + assistant(c), "rejected": user(p) + assistant(r)} for p, c, r in TRIPLES
    ],
    "attribute column": [{"prompt": p, "chosen": c, "rejected": r, "attribute": "empathy"} for p, c, r in TRIPLES],
    "scores": [{"prompt": p, "responses": [c, r], "scores": {"empathy": [0.5, 0.25]}} for p, c, r in TRIPLES],
    "rated answers": rated(named=False),
    "scored answers": rated(named=True),
}


def digests(result: RecipeResult) -> dict[str, str]:
    """Digests of the trained weights."""
    files: list[Path] = sorted(result.outputs[0].path.glob("*.safetensors"))
    assert files
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def arm(world: World) -> dict[str, str]:
    ours = [{"prompt": p, "responses": [c, r], "labels": {"empathy": 0}} for p, c, r in TRIPLES]
    return digests(world.run(ARM, {"pairs": ours}))


@pytest.mark.parametrize("form", PAIRS)
def test_an_arm_is_the_same_whatever_form_its_pairs_have(form: str, arm: dict[str, str], world: World) -> None:
    context = world.context(ARM, {"pairs": PAIRS[form]}, label_attributes={"pairs": "empathy"})
    assert digests(train(parse_spec(ARM), context)) == arm


def test_a_job_leaves_out_the_bad_rows_that_its_data_set_skips(arm: dict[str, str], world: World) -> None:
    bad = [{"prompt": "", "chosen": "a", "rejected": "b"}, {"prompt": "a", "chosen": "b"}]
    rows = {"pairs": [*PAIRS["chosen and rejected"], *bad]}
    attributes = {"pairs": "empathy"}
    with pytest.raises(InvalidDataset, match="prompt"):
        train(parse_spec(ARM), world.context(ARM, rows, label_attributes=attributes))
    context = world.context(ARM, rows, label_attributes=attributes, bad_rows={"pairs": "skip"})
    assert digests(train(parse_spec(ARM), context)) == arm
    assert ("warn", "2 bad rows of pairs are left out") in context.messages


COMPLETIONS: dict[str, list[dict[str, Any]]] = {
    "messages": [{"messages": user(row["prompt"]) + assistant(row["completion"])} for row in DATA["harmful_pairs"]],
    "conversational": [
        {"prompt": user(row["prompt"]), "completion": assistant(row["completion"])} for row in DATA["harmful_pairs"]
    ],
    "with a row that the cut leaves nothing of": [
        {"prompt": "x" * 100, "completion": "y"},
        *DATA["harmful_pairs"],
    ],
}


@pytest.mark.trap(18)
@pytest.mark.parametrize("form", COMPLETIONS)
def test_a_harm_vector_does_not_depend_on_the_form_of_its_pairs(form: str, world: World) -> None:
    expected = digests(world.run(HARM, {"harmful_pairs": DATA["harmful_pairs"]}))
    assert digests(build(parse_spec(HARM), world.context(HARM, {"harmful_pairs": COMPLETIONS[form]}))) == expected


def test_the_events_say_how_long_rows_are_and_how_many_are_lost(world: World) -> None:
    context = world.context(HARM, {"harmful_pairs": COMPLETIONS["with a row that the cut leaves nothing of"]})
    metadata = build(parse_spec(HARM), context).outputs[0].metadata
    assert isinstance(metadata, TaskVectorMetadata)
    assert metadata.rows == {"harmful_pairs": 3}
    ((level, message),) = [found for found in context.messages if "harmful_pairs" in found[1]]
    assert (level, message) == ("warn", "1 of 4 harmful_pairs have no answer within max_length")


def test_a_data_set_of_pairs_can_be_asked(world: World) -> None:
    spec = {
        **evaluation_spec(preferences=1, prompts_per_preference=2, sampling={"max_tokens": 2}),
        "harmful_prompts": None,
        "benign_pairs": None,
    }
    results = [
        evaluate(parse_spec(spec), world.context(spec, {"lexicon": DATA["lexicon"], "prompts": prompts}))
        for prompts in (
            [{"prompt": row["prompt"]} for row in DATA["pairs"]],
            DATA["pairs"],
            [{"prompt": user(row["prompt"])} for row in DATA["pairs"]],
        )
    ]
    plain, *others = [result.outputs[0].metadata for result in results]
    assert all(other == plain for other in others)
    assert '"role": "user"' in (results[2].outputs[0].path / "samples.jsonl").read_text()
