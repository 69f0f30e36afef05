"""arm.train's spec refuses hyper-parameters out of range and inconsistent backbones."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from armature.contracts.specs import parse_spec
from armature.contracts.specs.arm import ArmTrainSpec

MINIMAL = {"kind": "arm.train", "base_model": "mdl_1", "pairs": "ds_1"}


@pytest.mark.bad_input(51)
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
            parse_spec({**MINIMAL, "training": {field: value}})


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
        parse_spec({**MINIMAL, **changes})


def parse(**changes: object) -> ArmTrainSpec:
    spec = parse_spec({**MINIMAL, **changes})
    assert isinstance(spec, ArmTrainSpec)
    return spec


def test_the_backbone_is_safe_where_there_is_a_harm_vector() -> None:
    assert parse().backbone_kind == "base"
    assert parse(harm_vector="art_1").backbone_kind == "safe"
    separate = parse(backbone="separate", backbone_model="mdl_2")
    assert separate.references()["backbone_model"].param == "spec.backbone_model"
