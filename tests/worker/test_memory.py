"""The memory estimate: sizes that follow from the spec and the base model's metadata, worked out by hand here."""

import pytest

from armature.contracts.artifacts import CheckpointMetadata
from armature.contracts.specs import parse_spec
from armature_worker.memory import estimate_memory
from tests.support.recipe_world import arm_spec, evaluation_spec, harm_spec, sweep_spec

BASE = CheckpointMetadata(
    model_digest="0" * 64,
    tokenizer_digest="0" * 64,
    weights_digest="0" * 64,
    architecture="LlamaForCausalLM",
    parameters=1_000_000,
    dtype="bfloat16",
    vocab_size=100,
    context_length=64,
    chat_template=False,
)
FULL = {"method": "full", "batch_size": 3, "max_length": 10}


@pytest.mark.parametrize(
    ("spec", "weights", "training", "logits"),
    [
        (arm_spec(training={"batch_size": 3, "max_length": 10}), 2_000_000, 0, 6 * 10 * 100 * 12),
        (
            arm_spec(training={"batch_size": 4, "micro_batch_size": 1, "max_length": 10, "dtype": "float32"}),
            4_000_000,
            0,
            2 * 10 * 100 * 12,
        ),
        (harm_spec(training=FULL), 4_000_000, 16_000_000, 3 * 10 * 100 * 12),
        (harm_spec(training=FULL | {"method": "lora"}), 4_000_000, 0, 3 * 10 * 100 * 12),
        (sweep_spec(training=FULL), 6_000_000, 16_000_000, 3 * 10 * 100 * 12),
        (evaluation_spec(sampling={"batch_size": 4}), 2_000_000, 0, 2 * 4 * 100 * 12),
    ],
)
def test_what_a_job_takes(spec, weights, training, logits):
    estimate = estimate_memory(parse_spec(spec), BASE)
    assert (estimate.weights, estimate.training, estimate.logits) == (weights, training, logits)
    assert estimate.total == weights + training + logits
    assert str(weights) in estimate.advice


def test_a_kind_without_a_row_can_not_be_told():
    spec = parse_spec(
        {"kind": "base_model.import", "name": "tiny", "source": {"type": "folder", "path": "/models/tiny"}}
    )
    assert estimate_memory(spec, BASE).total == 0


def test_weights_count_in_their_dtype():
    wide = BASE.model_copy(update={"dtype": "float32"})
    assert estimate_memory(parse_spec(arm_spec()), wide).weights == 4_000_000


@pytest.mark.parametrize(
    ("training", "weights", "rows"),
    [
        ({"processes": 2}, 2_000_000, 4),  # of the 2 x 4 answers of a step
        ({"processes": 2, "sharding": "fsdp"}, 1_000_000, 4),
        ({"micro_batch_size": 1}, 2_000_000, 2),
        ({"processes": 4, "micro_batch_size": 4}, 2_000_000, 2),
    ],
)
def test_what_each_of_several_processes_takes(training, weights, rows):
    spec = parse_spec(arm_spec(training={"batch_size": 4, "max_length": 10} | training))
    estimate = estimate_memory(spec, BASE)
    assert (estimate.weights, estimate.logits) == (weights, rows * 10 * 100 * 12)


def test_the_advice_names_fields_of_the_spec():
    assert "training.method" in estimate_memory(parse_spec(harm_spec()), BASE).advice
    assert "training.max_length" in estimate_memory(parse_spec(arm_spec()), BASE).advice
