"""The memory estimate against sizes worked out by hand, and against the measured peaks of tiny jobs."""

import json

import pytest
from torch.profiler import ProfilerActivity, profile

from armature.contracts.artifacts import CheckpointMetadata
from armature.contracts.specs import parse_spec
from armature_worker.host.memory_estimate import JUDGED_LOGITS, RowLengths, estimate_memory
from tests.support.recipe_world import DATA, World, arm_spec, evaluation_spec, harm_spec, sweep_spec
from tests.support.tiny_models import save_tiny_checkpoint, tiny_family


def pairs_spec(**changes):
    teacher = {"type": "base_model", "base_model": "m"}
    spec = {"kind": "pairs.generate", "prompts": "d", "teachers": [teacher], "sampling": {"batch_size": 4}}
    return spec | changes


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
BE_KIND = {"instruction": "Be kind."}
FULL = {"method": "full", "batch_size": 3, "micro_batch_size": 3, "max_length": 10}


@pytest.mark.parametrize(
    ("spec", "weights", "training", "logits"),
    [
        (
            arm_spec(training={"batch_size": 3, "micro_batch_size": 3, "max_length": 10}),
            2_000_000,
            0,
            6 * 10 * 100 * 12,
        ),
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
        (evaluation_spec(sampling={"batch_size": 4}, sda=BE_KIND), 2_000_000, 0, 3 * 4 * 100 * 12),
        (pairs_spec(), 2_000_000, 0, 4 * 100 * 12),
        (pairs_spec(judges=[{"type": "likelihood_ratio", "base_model": "m"}]), 2_000_000, 0, JUDGED_LOGITS * 12),
    ],
)
def test_what_a_job_takes(spec, weights, training, logits):
    estimate = estimate_memory(parse_spec(spec), BASE)
    assert (estimate.weights, estimate.training, estimate.logits) == (weights, training, logits)
    assert estimate.total == weights + training + logits
    assert str(weights) in estimate.advice


def test_a_kind_without_a_formula_is_unknown():
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
        ({"processes": 2, "micro_batch_size": 4}, 2_000_000, 4),  # of the 2 x 4 answers of a step
        ({"processes": 2, "micro_batch_size": 4, "sharding": "fsdp"}, 1_000_000, 4),
        ({"micro_batch_size": 1}, 2_000_000, 2),
        ({"micro_batch_size": None}, 2_000_000, 2),  # the job takes as many as fit
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


WIDE = BASE.model_copy(update={"hidden_size": 1000, "layers": 10})
"""900 000 weights in layers, 90 000 in each: a token leaves 180 numbers in a layer."""
SHORT = {"batch_size": 3, "micro_batch_size": 3, "max_length": 10}


@pytest.mark.parametrize(
    ("spec", "numbers", "item"),
    [
        (arm_spec(training=SHORT), 60 * 5 * 180, 2),  # the upper half, both answers of three pairs
        (arm_spec(training=SHORT, adapter={"layers": "all"}), 60 * 10 * 180, 2),
        (arm_spec(training=SHORT | {"dtype": "float32"}), 60 * 5 * 180, 4),
        (arm_spec(training=SHORT | {"gradient_checkpointing": True}), 60 * (5 * 1000 + 180), 2),
        (harm_spec(training=SHORT), 30 * 10 * 180, 4),
        (harm_spec(training=SHORT, selection={"layers": [7, 3]}), 30 * 7 * 180, 4),
        (harm_spec(training=SHORT | {"method": "lora", "offload": True}), 30 * (10 * 1000 + 180), 4),
        (sweep_spec(training=SHORT, grid={"layers": ["upper_half", [9, 4]]}), 30 * 6 * 180, 4),
        (evaluation_spec(sampling={"batch_size": 4, "max_tokens": 7}), 8 * 7 * 2 * 10 * 1000, 2),
    ],
)
def test_what_layers_keep_of_a_batch(spec, numbers, item):
    estimate = estimate_memory(parse_spec(spec), WIDE)
    assert estimate.activations == numbers * item
    assert f"activations {numbers * item}" in estimate.advice
    assert estimate_memory(parse_spec(spec), BASE).activations == 0


@pytest.mark.parametrize(("sda", "streams"), [(None, 1), (BE_KIND, 2)])
def test_an_arm_on_a_model_of_its_own_takes_that_model_too(sda, streams):
    """The base runs the streams without the adapter, the small model two."""
    small = BASE.model_copy(update={"parameters": 1000, "dtype": "float32", "hidden_size": 10, "layers": 3})
    spec = parse_spec(evaluation_spec(sampling={"batch_size": 4, "max_tokens": 7}, sda=sda))
    estimate = estimate_memory(spec, WIDE, small)
    assert estimate.weights == 2_000_000 + 4000
    assert estimate.logits == (streams + 2) * 4 * 100 * 12
    kept = [(streams, 2 * 10 * 1000, 2), (2, 2 * 3 * 10, 4)]
    assert estimate.activations == sum(rows * 4 * 7 * numbers * item for rows, numbers, item in kept)


def test_of_offloaded_layers_one_is_held():
    offloaded = parse_spec(harm_spec(training={"method": "lora", "offload": True}))
    assert estimate_memory(offloaded, WIDE).weights == 4 * (100_000 + 90_000)
    assert estimate_memory(offloaded, BASE).weights == 0


LENGTHS = RowLengths(prompt=5, answer=4)


@pytest.mark.parametrize(
    ("spec", "rows", "kept"),
    [
        (harm_spec(training=FULL), 3, 10 * 180 * 4),
        (harm_spec(training=FULL | {"micro_batch_size": None}), 1, 10 * 180 * 4),
        (arm_spec(training=SHORT), 6, 5 * 180 * 2),
    ],
)
def test_the_datas_own_lengths_count(spec, rows, kept):
    """The spec would allow rows of 10 tokens that are answers throughout; the data has 5 + 4."""
    estimate = estimate_memory(parse_spec(spec), WIDE, lengths=LENGTHS)
    assert (estimate.logits, estimate.activations) == (rows * 4 * 100 * 12, rows * 9 * kept)
    longer = estimate_memory(parse_spec(spec), WIDE, lengths=RowLengths(500, 700))
    assert longer == estimate_memory(parse_spec(spec), WIDE)


def test_prompts_of_an_evaluation_take_keys_and_values_too():
    spec = parse_spec(evaluation_spec(sampling={"batch_size": 4, "max_tokens": 7}))
    estimate = estimate_memory(spec, WIDE, lengths=LENGTHS)
    assert estimate.activations == 8 * (5 + 7) * 2 * 10 * 1000 * 2


def test_embeddings_take_no_training_state():
    """Of a million weights 100 000 are embeddings, which a harm vector never changes."""
    assert estimate_memory(parse_spec(harm_spec(training=FULL)), WIDE).training == 4 * 4 * 900_000


FACTOR = 1.5
LENGTH = 160
TEXT = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon " * 2
"""One token a byte: rows are cut to fill a batch at the spec's length."""
LONG_ROWS = {
    "harmful_pairs": [{"prompt": f"{row}?", "completion": TEXT[row : row + LENGTH - 8]} for row in range(8)],
    "pairs": [
        {
            "prompt": f"{row} is sad",
            "responses": [TEXT[row + start : row + start + LENGTH - 16] for start in (0, 3)],
            "labels": {"empathy": row % 2, "helpfulness": 1 - row % 2},
        }
        for row in range(8)
    ],
}
BATCH = {"steps": 2, "max_length": LENGTH, "learning_rate": 1e-2}
PAIRS = BATCH | {"batch_size": 4, "micro_batch_size": 4}
ROWS = BATCH | {"batch_size": 8, "micro_batch_size": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("world"))
    for family in ("llama", "gpt2"):
        model = tiny_family(family, hidden_size=64, intermediate_size=160)
        world.import_model(save_tiny_checkpoint(world.folder / family, model), family)
    return world


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "spec",
    [
        arm_spec(training=PAIRS),
        arm_spec(training=PAIRS, adapter={"layers": "all"}),
        arm_spec(training=PAIRS | {"gradient_checkpointing": True}),
        harm_spec(training=ROWS),
        harm_spec(training=ROWS | {"method": "lora"}),
    ],
    ids=["upper half", "all layers", "checkpointing", "full", "lora"],
)
def test_the_estimate_is_near_the_peak_of_the_job(world, tmp_path, family, spec):
    job = spec | {"base_model": family}
    estimate = estimate_memory(parse_spec(job), world.artifacts[family].manifest.metadata)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        world.run(job, {**DATA, **LONG_ROWS})
    watched.export_chrome_trace(str(tmp_path / "trace.json"))
    peak = peak_of(tmp_path / "trace.json")
    assert estimate.total / FACTOR < peak < estimate.total * FACTOR
    assert peak > 2 * (estimate.total - estimate.activations) / FACTOR  # it is the activations that bring it near


def peak_of(trace):
    """Return the most bytes held at once, from a profiler's memory trace."""
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak
