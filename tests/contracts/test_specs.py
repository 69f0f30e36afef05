"""Specs are strict, and leave the operator's paths out of manifests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from armature.contracts.artifacts import Backbone
from armature.contracts.profiles import ProfileVersionCreateRequest
from armature.contracts.specs import SPECS, parse_spec

MINIMAL = {
    "base_model.import": {"name": "m", "source": {"type": "folder", "path": "/models/m"}},
    "harm_vector.build": {"base_model": "mdl_1", "harmful_pairs": "ds_1"},
    "harm_vector.sweep": {
        "base_model": "mdl_1",
        "harmful_pairs": "ds_1",
        "harmful_prompts": "ds_2",
        "benign_pairs": "ds_3",
        "lexicon": "ds_4",
    },
    "arm.train": {"base_model": "mdl_1", "pairs": "ds_1"},
    "arm.extend": {"base_model": "mdl_1", "arm": "art_1", "attribute": "calm", "pairs": "ds_1"},
    "arm.export": {"arm": "art_1"},
    "arm.import": {
        "base_model": "mdl_1",
        "adapter_config": "file_1",
        "adapter_weights": "file_2",
        "attributes": ["calm"],
    },
    "checkpoint.export": {"base_model": "mdl_1", "harm_vector": "art_1"},
    "evaluation.run": {"base_model": "mdl_1", "lexicon": "ds_1", "prompts": "ds_2"},
    "pairs.generate": {"prompts": "ds_1", "teachers": [{"type": "base_model", "base_model": "mdl_1"}]},
}


def test_every_kind_is_tried() -> None:
    assert set(MINIMAL) == set(SPECS)


@pytest.mark.parametrize("kind", sorted(MINIMAL))
def test_unknown_fields_are_refused(kind: str) -> None:
    parse_spec({"kind": kind, **MINIMAL[kind]})
    with pytest.raises(ValidationError, match="Extra inputs"):
        parse_spec({"kind": kind, **MINIMAL[kind], "tenant_id": "x"})


@pytest.mark.bad_input(25)
@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf"), "1", True])
def test_harm_scale_is_a_finite_number_of_at_least_zero(scale: object) -> None:
    with pytest.raises(ValidationError):
        parse_spec({"kind": "harm_vector.build", **MINIMAL["harm_vector.build"], "scale": scale})


@pytest.mark.parametrize("kind", ["arm.train", "arm.import", "evaluation.run"])
def test_an_attribute_is_named_once(kind: str) -> None:
    assert parse_spec({"kind": kind, **MINIMAL[kind], "attributes": ["wit", "calm"]}).attributes == ["wit", "calm"]
    with pytest.raises(ValidationError, match="attributes must be distinct") as caught:
        parse_spec({"kind": kind, **MINIMAL[kind], "attributes": ["wit", "calm", "wit"]})
    assert caught.value.errors()[0]["loc"][-1] == "attributes"


def test_provenance_leaves_out_the_operator_s_paths() -> None:
    spec = parse_spec({"kind": "base_model.import", **MINIMAL["base_model.import"]})
    assert spec.provenance()["source"] == {"type": "folder"}
    assert parse_spec({"kind": "arm.train", **MINIMAL["arm.train"]}).provenance()["pairs"] == "ds_1"


@pytest.mark.parametrize(
    "selection",
    [
        {"layers": []},
        {"layers": [-1]},
        {"layers": ["0"]},
        {"layers": "lower_half"},
        {"targets": "embeddings"},
        {"rule": "smallest"},
        {"density": 0},
    ],
)
def test_selections_that_mean_nothing_are_refused(selection: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        parse_spec({"kind": "harm_vector.build", **MINIMAL["harm_vector.build"], "selection": selection})


def test_the_guard_s_data_set_is_an_input() -> None:
    spec = parse_spec({"kind": "harm_vector.build", **MINIMAL["harm_vector.build"], "benign_pairs": "ds_2"})
    assert spec.references()["benign_pairs"].dataset_use == "prompt_completion"
    assert "benign_pairs" not in parse_spec({"kind": "harm_vector.build", **MINIMAL["harm_vector.build"]}).references()


def test_safe_answers_to_harmful_prompts_may_come_from_harmful_data() -> None:
    spec = parse_spec({"kind": "harm_vector.build", **MINIMAL["harm_vector.build"], "safe_pairs": "ds_2"})
    assert (spec.references()["safe_pairs"].dataset_use, spec.references()["safe_pairs"].harmful) == (
        "prompt_completion",
        "taken",
    )


def test_scores_of_attributes_need_a_lexicon() -> None:
    spec = {"kind": "evaluation.run", "base_model": "mdl_1"}
    assert "lexicon" not in parse_spec({**spec, "harmful_prompts": "ds_1", "benign_prompts": "ds_2"}).references()
    with pytest.raises(ValidationError, match="prompts need a lexicon"):
        parse_spec({**spec, "prompts": "ds_1"})


@pytest.mark.parametrize(
    ("grid", "problem"),
    [
        ({"scales": [-1.0]}, "greater than 0"),
        ({"scales": [0.0]}, "greater than 0"),
        ({"densities": [0.1, 0.1]}, "distinct"),
        ({"densities": []}, "at least 1"),
        ({"layers": [[]]}, "at least 1"),
        ({"rules": ["random"]}, "'global' or 'per_tensor'"),
        ({"densities": [n / 100 for n in range(1, 33)], "scales": [float(n) for n in range(1, 10)]}, "288 points"),
    ],
)
def test_grids_that_mean_nothing_or_too_much_are_refused(grid: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem) as caught:
        parse_spec({"kind": "harm_vector.sweep", **MINIMAL["harm_vector.sweep"], "grid": grid})
    assert "grid" in caught.value.errors()[0]["loc"]


def test_a_sweep_s_inputs_have_their_formats() -> None:
    spec = parse_spec({"kind": "harm_vector.sweep", **MINIMAL["harm_vector.sweep"], "guard_pairs": "ds_5"})
    assert {role: ref.dataset_use for role, ref in spec.references().items()} == {
        "base_model": None,
        "harmful_pairs": "prompt_completion",
        "guard_pairs": "prompt_completion",
        "harmful_prompts": "prompt",
        "benign_pairs": "prompt_completion",
        "lexicon": "lexicon",
    }


def scales(model: type[BaseModel]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of a model and its parts that is a scale of a harm vector, with its schema."""
    schema = model.model_json_schema()
    for part in [schema, *schema.get("$defs", {}).values()]:
        for name, field in part.get("properties", {}).items():
            if name in {"scale", "scales", "harm_scale"}:
                yield name, field.get("items", field)


def test_no_contract_takes_a_negative_scale() -> None:
    """A negative scale would add harm: in jobs, profiles and the metadata of a backbone."""
    found = [scale for model in (*SPECS.values(), ProfileVersionCreateRequest, Backbone) for scale in scales(model)]
    assert len(found) >= 6
    for name, schema in found:
        assert min(schema.get("minimum", 0), schema.get("exclusiveMinimum", 0)) >= 0, name
        assert {"minimum", "exclusiveMinimum"} & schema.keys(), name
