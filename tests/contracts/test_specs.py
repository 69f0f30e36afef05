"""Specs: strict, and discreet in what they leave in manifests."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from armature.contracts.specs import SPECS, parse_spec

MINIMAL = {
    "base_model.import": {"name": "m", "source": {"type": "folder", "path": "/models/m"}},
    "harm_vector.build": {"base_model": "mdl_1", "harmful_pairs": "ds_1"},
    "arm.train": {"base_model": "mdl_1", "pairs": "ds_1"},
    "arm.export": {"arm": "art_1"},
    "arm.import": {
        "base_model": "mdl_1",
        "adapter_config": "file_1",
        "adapter_weights": "file_2",
        "attributes": ["calm"],
    },
    "evaluation.run": {"base_model": "mdl_1", "lexicon": "ds_1"},
}


def test_every_kind_is_tried() -> None:
    assert set(MINIMAL) == set(SPECS)


@pytest.mark.parametrize("kind", sorted(MINIMAL))
def test_unknown_fields_are_refused(kind: str) -> None:
    parse_spec({"kind": kind, **MINIMAL[kind]})
    with pytest.raises(ValidationError, match="Extra inputs"):
        parse_spec({"kind": kind, **MINIMAL[kind], "tenant_id": "x"})


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


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("learning_rate", [0, -1e-3, float("nan"), float("inf"), 1e9, "1e-3", True]),
        ("steps", [0, -1, 10**9, 1.5, "250"]),
        ("batch_size", [0, -4, 10**6, 2.0]),
        ("micro_batch_size", [0, -1, 17]),
        ("weight_decay", [-0.1, 1.5, float("nan")]),
        ("warmup_steps", [-1, 250, 10**9]),
        ("max_length", [0, 7, 10**9]),
        ("max_grad_norm", [0, -1.0, float("nan")]),
        ("checkpoint_every", [0, -1]),
        ("dtype", ["float16", "int8", ""]),
        ("gradient_checkpointing", [1, "yes"]),
    ],
)
def test_training_settings_out_of_range_are_refused(field: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(ValidationError):
            parse_spec({"kind": "arm.train", **MINIMAL["arm.train"], "training": {field: value}})


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": {"rank_conditioned": 0}},
        {"adapter": {"rank_conditioned": 10**6}},
        {"adapter": {"rank_shared": -1}},
        {"adapter": {"alpha": float("nan")}},
        {"adapter": {"alpha": 0}},
        {"adapter": {"dropout": 1.0}},
        {"adapter": {"targets": "(a+)+$"}},
        {"loss": {"beta": 0}},
        {"loss": {"form": "hinge"}},
        {"conflict": {"method": "nash"}},
        {"conflict": {"record_every": 0}},
        {"preferences": {"vertices": 0.7, "centroid": 0.4}},
        {"preferences": {"concentration": 0}},
        {"harm_scale": -1},
        {"harm_scale": float("nan")},
        {"seed": "7"},
        {"seed": -1},
        {"validation": {"share": 0.6}},
        {"validation": {"every": 0}},
        {"validation": {"share": 0.1}, "validation_pairs": "ds_2"},
        {"backbone": "safe"},
        {"backbone": "base", "harm_vector": "art_1"},
        {"backbone": "separate"},
        {"backbone": "separate", "backbone_model": "mdl_2", "harm_vector": "art_1"},
        {"backbone_model": "mdl_2"},
    ],
)
def test_arms_that_can_not_be_trained_are_refused_with_the_spec(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        parse_spec({"kind": "arm.train", **MINIMAL["arm.train"], **changes})


def test_the_backbone_is_safe_where_there_is_a_harm_vector() -> None:
    given = {"kind": "arm.train", **MINIMAL["arm.train"]}
    assert parse_spec(given).backbone_kind == "base"
    assert parse_spec({**given, "harm_vector": "art_1"}).backbone_kind == "safe"
    separate = parse_spec({**given, "backbone": "separate", "backbone_model": "mdl_2"})
    assert separate.references()["backbone_model"].param == "spec.backbone_model"
