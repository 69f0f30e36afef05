"""Impossible hyperparameters are refused on submission, by their field, before a GPU is used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.api import Api, Key, error_of

RATES = [0, -1e-3, 1e9]
COUNTS = [0, -1, 10**9, 1.5, "8"]
SEEDS = ["7", -1, 2**64, 1.5]
TUNING = {
    "training.learning_rate": RATES,
    "training.steps": COUNTS,
    "training.batch_size": COUNTS,
    "training.max_length": [0, 7, 10**9],
    "training.lora_rank": [0, 10**6, "4"],
    "training.lora_alpha": [0, -1.0, 1e9],
    "seed": SEEDS,
}
OUT_OF_RANGE: dict[str, dict[str, list[Any]]] = {
    "harm_vector.build": TUNING
    | {
        "selection.density": [-0.1, 0, 1.5, "0.1"],
        "selection.layers": [[], [-1], "lower_half"],
        "selection.targets": ["embeddings", "(a+)+$"],
        "scale": [-0.5, 1e9, "1"],
    },
    "harm_vector.sweep": TUNING
    | {
        "grid.densities": [[], [0], [1.5], [0.1, 0.1]],
        "grid.scales": [[], [0], [-1.0], [1e9]],
        "grid.layers": [[], ["lower_half"], [[]]],
        "goal.max_asr": [0, 1.5],
        "goal.max_nll_rise": [-0.1],
        "sampling.temperature": [-1.0, 1e9],
        "sampling.max_tokens": [0, 10**9],
    },
    "arm.train": {
        "training.learning_rate": RATES,
        "training.steps": COUNTS,
        "training.batch_size": COUNTS,
        "training.micro_batch_size": [0, 10**9],
        "training.max_length": [0, 7, 10**9],
        "training.weight_decay": [-0.1, 1.5],
        "training.max_grad_norm": [0, -1.0],
        "training.processes": [0, 65],
        "adapter.rank_conditioned": [0, 10**6, "4"],
        "adapter.rank_shared": [-1, 10**6],
        "adapter.alpha": [0, -1.0],
        "adapter.dropout": [-0.1, 1.0],
        "adapter.targets": ["(a+)+$"],
        "loss.beta": [0, -1.0],
        "preferences.concentration": [0, -1.0],
        "harm_scale": [-0.5, 1e9],
        "seed": SEEDS,
    },
}
CASES = [(kind, field, value) for kind, of in OUT_OF_RANGE.items() for field, values in of.items() for value in values]
MORE_THAN_THE_MODEL_HAS = [
    ("harm_vector.build", {"training": {"method": "lora", "lora_rank": 33}}, "training.lora_rank"),
    ("harm_vector.build", {"selection": {"layers": [0, 2]}}, "selection.layers"),
    ("harm_vector.sweep", {"training": {"method": "lora", "lora_rank": 33}}, "training.lora_rank"),
    ("harm_vector.sweep", {"grid": {"layers": ["all", [1], [2]]}}, "grid.layers"),
    ("arm.train", {"adapter": {"rank_conditioned": 33}}, "adapter.rank_conditioned"),
    ("arm.train", {"adapter": {"rank_shared": 33}}, "adapter.rank_shared"),
]


def nested(field: str, value: Any) -> dict[str, Any]:
    """Nest a dotted path: ``{"a": {"b": value}}`` for ``a.b``."""
    first, _, rest = field.partition(".")
    return {first: nested(rest, value) if rest else value}


@pytest.fixture
def specs(api: Api) -> Iterator[tuple[Key, dict[str, dict[str, Any]]]]:
    """Create a key, and a spec of each kind that is accepted."""
    key = api.tenant("acme")
    completions = key.dataset("prompt_completion", [{"prompt": "a", "completion": "b"}])
    harm = {"base_model": api.base_model(key.tenant_id)[0], "harmful_pairs": completions}
    judged = {"prompt": "a", "responses": ["b", "c"], "labels": {"empathy": 1}}
    yield (
        key,
        {
            "harm_vector.build": harm,
            "harm_vector.sweep": harm
            | {
                "benign_pairs": key.dataset("prompt_completion", [{"prompt": "c", "completion": "d"}]),
                "harmful_prompts": key.dataset("prompt", [{"prompt": "a"}]),
                "lexicon": key.dataset("lexicon", [{"attributes": {"empathy": ["kind"]}}]),
            },
            "arm.train": {
                "base_model": harm["base_model"],
                "pairs": key.dataset("preference", [judged]),
                "attributes": ["empathy"],
            },
        },
    )
    assert {job["kind"] for job in key.get("/v1/jobs").json()["data"]} == {
        "test.work"
    }  # the job that made the base model


@pytest.mark.bad_input(51)
def test_hyperparameters_out_of_range_are_named(specs: tuple[Key, dict[str, dict[str, Any]]]) -> None:
    key, given = specs
    for kind, field, value in CASES:
        spec = {"kind": kind, **given[kind], **nested(field, value)}
        error = error_of(key.post("/v1/jobs", {"spec": spec}), 422)
        assert (error["param"] or "").startswith(f"spec.{field}"), (kind, field, value, error)


@pytest.mark.bad_input(51)
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_non_finite_hyperparameters_are_refused(number: str, specs: tuple[Key, dict[str, dict[str, Any]]]) -> None:
    key, given = specs
    for field in ("training.learning_rate", "selection.density", "scale"):
        spec = {"kind": "harm_vector.build", **given["harm_vector.build"], **nested(field, "here")}
        answer = key.request(
            "POST",
            "/v1/jobs",
            content=json.dumps({"spec": spec}).replace('"here"', number),
            headers={"Content-Type": "application/json"},
        )
        assert error_of(answer, 422)["code"] == "non_finite_number"


@pytest.mark.bad_input(51)
@pytest.mark.parametrize(("kind", "changes", "field"), MORE_THAN_THE_MODEL_HAS)
def test_ranks_and_layers_beyond_the_model_are_refused(
    kind: str, changes: dict[str, Any], field: str, specs: tuple[Key, dict[str, dict[str, Any]]]
) -> None:
    key, given = specs
    error = error_of(key.post("/v1/jobs", {"spec": {"kind": kind, **given[kind], **changes}}), 422)
    assert (error["code"], error["param"]) == ("invalid_request", f"spec.{field}")


def test_ranks_and_layers_that_fit_are_accepted(api: Api) -> None:
    key = api.tenant("acme")
    spec = {
        "kind": "harm_vector.build",
        "base_model": api.base_model(key.tenant_id)[0],
        "harmful_pairs": key.dataset("prompt_completion", [{"prompt": "a", "completion": "b"}]),
        "training": {"method": "lora", "lora_rank": 32},
        "selection": {"layers": [1]},
    }
    assert key.post("/v1/jobs", {"spec": spec}).status_code == 202
    full = spec | {"training": {"method": "full", "lora_rank": 33}}
    assert key.post("/v1/jobs", {"spec": full}).status_code == 202
