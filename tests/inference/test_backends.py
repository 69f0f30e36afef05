"""The suite that every back end passes: each row equals a separate plain forward, whatever shares the batch with it."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from armature.contracts.specs.arm import AdapterShape
from armature.errors import InvalidCheckpoint, InvalidRequest
from armature.inference.lean.architecture import supports
from armature.inference.lean.model import LeanModel
from armature.inference.lean.runner import LeanRunner
from armature.inference.lean.static_step import StaticStep
from armature.inference.runner import ModelRunner, Read
from armature.inference.transformers.runner import TransformersRunner
from armature.modeling.adapters.peft_pblora import adapter_layers, preferences
from tests.support.adapters import add_random_adapter
from tests.support.failing_ops import FailingOps, fail_at_every_operation
from tests.support.recorded_ops import RecordedOps
from tests.support.rows import TwinLogits, TwinRows, join_rows
from tests.support.tiny_models import tiny_family, tiny_llama

pytestmark = pytest.mark.slow

ATTRIBUTES = ["empathy", "truthfulness", "helpfulness"]
VERTICES = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]]
TOLERANCE = {"atol": 1e-5, "rtol": 0.0}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: tiny_family("llama", tie_word_embeddings=False),
    "llama-tied": lambda: tiny_family("llama", tie_word_embeddings=True),
    "llama-biased": lambda: tiny_family("llama", attention_bias=True, mlp_bias=True),
    "llama-rope-llama3": lambda: tiny_family("llama", rope_parameters=LLAMA3_ROPE),
    "llama-rope-linear": lambda: tiny_family(
        "llama", rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
    ),
    "mistral": lambda: tiny_family("mistral", sliding_window=None, head_dim=16),
    "qwen2": lambda: tiny_family("qwen2"),
    "qwen3": lambda: tiny_family("qwen3", head_dim=16, tie_word_embeddings=True),
    "all-heads": lambda: tiny_family("llama", num_key_value_heads=4),
    "one-kv-head": lambda: tiny_family("qwen2", num_key_value_heads=1),
}
"""Among them grouped queries, attention biases (qwen2), normalised queries and keys (qwen3), heads of another width."""
SHAPES = {
    "all layers": AdapterShape(layers="all"),
    "upper half": AdapterShape(layers="upper_half"),
    "MLP only": AdapterShape(layers="all", targets="mlp", rank_shared=2, rank_conditioned=3),
    "attention only": AdapterShape(layers="all", targets="attention", rank_shared=2, rank_conditioned=3),
    "no shared rank": AdapterShape(layers="upper_half", rank_shared=0),
    "modulated": AdapterShape(kind="modulated", layers="upper_half"),
    "scaled": AdapterShape(kind="scaled", layers="all", targets="mlp"),
}
RUNNERS: dict[str, Callable[[PeftModel], ModelRunner]] = {
    "hf": lambda model: TransformersRunner(model, len(ATTRIBUTES)),
    "lean": lambda model: LeanRunner(LeanModel(model), len(ATTRIBUTES)),
    "lean-recorded": lambda model: LeanRunner(
        LeanModel(model), len(ATTRIBUTES), start=partial(StaticStep, capture=RecordedOps())
    ),
}
LEAN = ["lean", "lean-recorded"]


def start(backend: str, model: PeftModel) -> TwinRows:
    return TwinRows(RUNNERS[backend](model))


def adapted(model: str, shape: str = "all layers", dtype: torch.dtype = torch.float32) -> PeftModel:
    """The same weights at every call."""
    return add_random_adapter(MODELS[model]().to(dtype), ATTRIBUTES, shape=SHAPES[shape])


def separate(model: PeftModel, ids: list[int], preference: list[float] | None) -> torch.Tensor:
    """The last position's logits of one sequence, without cache, padding or neighbours."""
    p = torch.tensor([preference or [0.0] * len(ATTRIBUTES)])
    with torch.inference_mode(), preferences(model, p, gate=torch.tensor([preference is not None])):
        return model(input_ids=torch.tensor([ids])).logits[0, -1]


def spoil(model: PeftModel) -> PeftModel:
    """The adapter overflows under a preference that gives the first attribute any weight."""
    for layer in adapter_layers(model).values():
        layer.weights("default").w2[0] = 3e38
    return model


def assert_twin(
    model: PeftModel, logits: TwinLogits, slot: int, ids: list[int], preference: list[float] | None
) -> None:
    torch.testing.assert_close(logits.safe[slot], separate(model, ids, None), **TOLERANCE)
    torch.testing.assert_close(logits.arm[slot], separate(model, ids, preference), **TOLERANCE)


@pytest.mark.parametrize(
    ("model", "shape"), [*((model, "all layers") for model in MODELS), *(("qwen2", shape) for shape in SHAPES)]
)
@pytest.mark.parametrize("backend", RUNNERS)
def test_both_streams_equal_two_separate_forwards(backend: str, model: str, shape: str) -> None:
    reference, rows = adapted(model, shape), start(backend, adapted(model, shape))
    sequences = [[5, 6, 7, 8], [9], [10, 11]]
    weights = [VERTICES[0], VERTICES[2], None]
    logits = join_rows(rows, sequences, weights)
    for _ in range(3):
        for slot, (ids, weight) in enumerate(zip(sequences, weights, strict=True)):
            assert_twin(reference, logits, slot, ids, weight)
        tokens = logits.arm.argmax(-1)
        sequences = [[*ids, token] for ids, token in zip(sequences, tokens.tolist(), strict=True)]
        logits = rows.step(tokens)
    assert not torch.allclose(logits.safe[0], logits.arm[0], atol=1e-2)  # the adapter does something
    assert torch.equal(logits.safe[2], logits.arm[2])


@pytest.mark.parametrize("chunk", [1, 7, 40])
@pytest.mark.parametrize("backend", RUNNERS)
def test_prefill_in_pieces_equals_a_forward_pass(backend: str, chunk: int) -> None:
    reference, rows = adapted("qwen3", "upper half"), start(backend, adapted("qwen3", "upper half"))
    prompts, weights = [list(range(3, 33)), [40], [41, 42, 43, 44, 45]], [VERTICES[0], VERTICES[1], None]
    join_rows(rows, [[9, 8]], [VERTICES[2]])
    logits = join_rows(rows, prompts, weights, chunk)
    for slot, (ids, weight) in enumerate(zip(prompts, weights, strict=True)):
        assert_twin(reference, logits, slot, ids, weight)
    logits = rows.step(torch.tensor([20, 21, 22, 23]))
    for slot, (ids, weight) in enumerate(zip([[9, 8], *prompts], [VERTICES[2], *weights], strict=True)):
        assert_twin(reference, logits, slot, [*ids, 20 + slot], weight)


@pytest.mark.parametrize("weight", [None, VERTICES[2]], ids=["unguided", "guided"])
@pytest.mark.parametrize(("backend", "shape"), [("hf", "all layers"), ("lean", "all layers"), ("lean", "upper half")])
def test_a_prompt_can_be_looked_at_after_every_position(backend: str, shape: str, weight: list[float] | None) -> None:
    reference, rows = adapted("qwen2", shape), start(backend, adapted("qwen2", shape))
    prefill = rows.begin([(ids := list(range(40, 61)), weight, None)], every_position=True)
    pieces = []
    while prefill.remaining:
        rows.runner.extend(prefill, 16)
        assert prefill.newest is not None
        pieces.append(prefill.newest)
    assert len(pieces) > 1
    safe, arm = (torch.cat([piece[stream] for piece in pieces]) for stream in (0, -1))
    assert len(safe) == len(arm) == len(ids)
    for position in range(len(ids)):
        torch.testing.assert_close(safe[position], separate(reference, ids[: position + 1], None), **TOLERANCE)
        torch.testing.assert_close(arm[position], separate(reference, ids[: position + 1], weight), **TOLERANCE)
    assert_twin(reference, rows.logits_of(prefill), 0, ids, weight)
    rows.join(prefill)
    assert_twin(reference, rows.step(torch.tensor([3])), 0, [*ids, 3], weight)


@pytest.mark.parametrize("backend", RUNNERS)
def test_the_others_go_on_between_the_pieces_of_a_prompt(backend: str) -> None:
    reference, rows = adapted("llama"), start(backend, adapted("llama"))
    ids, long = [5, 6], list(range(3, 43))
    join_rows(rows, [ids], [VERTICES[0]])
    prefill = rows.begin([(long, VERTICES[1], None)])
    while prefill.remaining:
        rows.runner.extend(prefill, 16)
        ids.append(30 + len(ids))
        assert_twin(reference, rows.step(torch.tensor(ids[-1:])), 0, ids, VERTICES[0])
    rows.join(prefill)
    assert_twin(reference, rows.logits_of(prefill), 0, long, VERTICES[1])
    logits = rows.step(torch.tensor([50, 51]))
    assert_twin(reference, logits, 0, [*ids, 50], VERTICES[0])
    assert_twin(reference, logits, 1, [*long, 51], VERTICES[1])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("backend", "shape"),
    [("hf", "all layers"), *((lean, shape) for lean in LEAN for shape in ("all layers", "upper half"))],
)
def test_requests_join_and_leave_without_touching_each_other(backend: str, shape: str, seed: int) -> None:
    reference, rows = adapted("qwen3", shape), start(backend, adapted("qwen3", shape))
    for logits, slot, ids, weight in join_and_leave(rows, seed, [*VERTICES, None]):
        assert_twin(reference, logits, slot, ids, weight)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("backend", RUNNERS)
def test_what_overflows_stays_in_its_own_rows(backend: str, seed: int) -> None:
    reference, rows = spoil(adapted("qwen3")), start(backend, spoil(adapted("qwen3")))
    overflows, sound = [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]
    for logits, slot, ids, weight in join_and_leave(rows, seed, [overflows, sound, None]):
        if weight is overflows:
            torch.testing.assert_close(logits.safe[slot], separate(reference, ids, None), **TOLERANCE)
            assert not logits.arm[slot].isfinite().any()
        else:
            assert_twin(reference, logits, slot, ids, weight)


@pytest.mark.parametrize("chunk", [4, 100])
@pytest.mark.parametrize("backend", RUNNERS)
def test_padding_that_overflows_changes_no_row(backend: str, chunk: int) -> None:
    """Rows are as wide as the longest prompt, and what fills the others up is a token like any other."""
    reference, model = adapted("llama"), adapted("llama")
    model.get_input_embeddings().weight.data[0] = torch.inf
    prompts, weights = [[5, 6], [7, 8, 9, 10, 11, 12], [13]], [VERTICES[0], None, VERTICES[1]]
    logits = join_rows(rows := start(backend, model), prompts, weights, chunk)
    for slot, (ids, weight) in enumerate(zip(prompts, weights, strict=True)):
        assert_twin(reference, logits, slot, ids, weight)
    logits = rows.step(torch.tensor([20, 21, 22]))
    for slot, (ids, weight) in enumerate(zip(prompts, weights, strict=True)):
        assert_twin(reference, logits, slot, [*ids, 20 + slot], weight)


def join_and_leave(
    rows: TwinRows, seed: int, weights: Sequence[list[float] | None]
) -> Iterator[tuple[TwinLogits, int, list[int], list[float] | None]]:
    """Random requests come, get tokens and go; gives the logits of every slot that there are any of."""
    draw = random.Random(seed)
    live: list[tuple[list[int], list[float] | None]] = []
    for _ in range(40):
        if live and draw.random() < 0.3:
            kept = sorted(draw.sample(range(len(live)), draw.randrange(len(live) + 1)))
            rows.keep(kept)
            live = [live[slot] for slot in kept]
        if live:
            tokens = [draw.randrange(3, 259) for _ in live]
            logits = rows.step(torch.tensor(tokens))
            for slot, (ids, weight) in enumerate(live):
                ids.append(tokens[slot])
                yield logits, slot, ids, weight
        if len(live) < 6 and draw.random() < 0.5:
            joiners = [
                ([draw.randrange(3, 259) for _ in range(draw.randrange(1, 12))], draw.choice(weights))
                for _ in range(draw.randrange(1, 4))
            ]
            logits = join_rows(rows, [ids for ids, _ in joiners], [weight for _, weight in joiners])
            for slot, (ids, weight) in enumerate(joiners):
                yield logits, slot, ids, weight
            live += [(list(ids), weight) for ids, weight in joiners]
        assert len(rows) == len(live)


@pytest.mark.parametrize("backend", RUNNERS)
def test_a_long_answer_outgrows_what_was_reserved(backend: str) -> None:
    reference, rows = adapted("llama"), start(backend, adapted("llama"))
    ids = [7]
    logits = join_rows(rows, [ids], [VERTICES[1]])
    for token in range(3, 150):
        ids.append(token)
        logits = rows.step(torch.tensor([token]))
    assert_twin(reference, logits, 0, ids, VERTICES[1])


@pytest.mark.parametrize("backend", RUNNERS)
def test_a_long_answer_goes_on_when_its_neighbours_have_left(backend: str) -> None:
    """Fewer rows are in use then than there are, at the moment at which the columns have to grow."""
    reference, rows = adapted("llama", "upper half"), start(backend, adapted("llama", "upper half"))
    prompts = [[7], [8, 9], [10, 11, 12], [13]]
    join_rows(rows, prompts, [VERTICES[0], None, VERTICES[1], VERTICES[2]])
    rows.keep([0, 2])
    sequences = [list(prompts[0]), list(prompts[2])]
    for token in range(3, 150):
        for ids in sequences:
            ids.append(token)
        logits = rows.step(torch.tensor([token, token]))
    for slot, (ids, weight) in enumerate(zip(sequences, (VERTICES[0], VERTICES[1]), strict=True)):
        assert_twin(reference, logits, slot, ids, weight)


def test_late_split_equals_a_full_adapter_that_is_zero_below() -> None:
    late, full = adapted("llama", "upper half"), adapted("llama", "all layers")
    upper = adapter_layers(late)
    for key, layer in adapter_layers(full).items():
        for tensor, value in zip(layer.weights("default"), _weights(upper.get(key)), strict=True):
            tensor.copy_(value)
    models = LeanModel(late), LeanModel(full)
    assert [model.split for model in models] == [2, 0]
    prompts, weights = [[5, 6, 7], [8, 9], [10]], [VERTICES[0], VERTICES[2], None]
    both = [TwinRows(LeanRunner(model, len(ATTRIBUTES))) for model in models]
    for split, whole in zip(*(join_rows(rows, prompts, weights) for rows in both), strict=True):
        torch.testing.assert_close(split, whole, **TOLERANCE)
    for split, whole in zip(*(rows.step(torch.tensor([20, 21, 22])) for rows in both), strict=True):
        torch.testing.assert_close(split, whole, **TOLERANCE)


def _weights(layer: Any) -> tuple[torch.Tensor | float, ...]:
    return layer.weights("default") if layer else (torch.tensor(0.0),) * 4


@pytest.mark.parametrize("shape", ["all layers", "modulated", "scaled"])
@pytest.mark.parametrize("model", ["llama", "qwen2"])
def test_bfloat16_stays_close_to_transformers(model: str, shape: str) -> None:
    rows = [start(backend, adapted(model, shape, torch.bfloat16)) for backend in ("hf", "lean")]
    logits = [join_rows(each, [[5, 6, 7, 8], [9, 10]], [VERTICES[2], VERTICES[1]]) for each in rows]
    for on_hf, on_lean in zip(*logits, strict=True):
        torch.testing.assert_close(on_lean, on_hf, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_guidance_lean_is_the_base_bit_for_bit(dtype: torch.dtype) -> None:
    """Carrying an adapter along changes nothing for a request that does not use it."""
    base = TwinRows(LeanRunner(LeanModel(MODELS["llama"]().to(dtype))))
    carrier = TwinRows(LeanRunner(LeanModel(adapted("llama", dtype=dtype)), len(ATTRIBUTES)))
    expected = join_rows(base, [[5, 6, 7]], [None])
    assert torch.equal(join_rows(carrier, [[5, 6, 7]], [None]).safe, expected.safe)
    for token in range(20, 26):
        expected = base.step(torch.tensor([token]))
        assert torch.equal(carrier.step(torch.tensor([token])).safe, expected.safe)


@pytest.mark.parametrize("backend", RUNNERS)
def test_a_join_that_fails_leaves_the_others_alone(backend: str) -> None:
    reference, rows = adapted("llama"), start(backend, adapted("llama"))
    join_rows(rows, [[5, 6]], [VERTICES[0]])
    with pytest.raises(IndexError):
        join_rows(rows, [[10_000]], [VERTICES[1]])  # an id that has no embedding
    assert len(rows) == 1
    assert_twin(reference, rows.step(torch.tensor([7])), 0, [5, 6, 7], VERTICES[0])


@pytest.mark.parametrize("prompt", [[9, 8, 7], list(range(3, 103))], ids=["short", "long"])
@pytest.mark.parametrize("backend", RUNNERS)
def test_a_join_that_fails_at_any_operation_leaves_the_others_alone(backend: str, prompt: list[int]) -> None:
    model, weights = "upper half", [VERTICES[0], VERTICES[2]]
    rows, untouched = (start(backend, adapted("llama", model)) for _ in range(2))
    for one in (rows, untouched):
        join_rows(one, [[5, 6], [7]], weights)
    begun = rows.begin([(prompt, VERTICES[1], None), (prompt[1:], None, None)])
    rows.compute(begun)
    tokens = itertools.cycle(range(20, 250))

    def check() -> None:
        newest = torch.tensor([next(tokens), next(tokens)])
        assert len(rows.runner) == 4
        torch.testing.assert_close(rows.step(newest), untouched.step(newest), **TOLERANCE)

    assert fail_at_every_operation(lambda: rows.join(begun), check) > 5
    join_rows(untouched, [prompt, prompt[1:]], [VERTICES[1], None])
    newest = torch.tensor([30, 31, 32, 33])
    torch.testing.assert_close(rows.step(newest), untouched.step(newest), **TOLERANCE)


@pytest.mark.parametrize("backend", RUNNERS)
def test_rows_that_a_failed_join_can_not_put_back_are_gone(backend: str) -> None:
    model, newest = adapted("llama", "upper half"), torch.tensor([20, 21])
    rows, left, seen = start(backend, model), set[int](), list[TwinLogits]()
    for number in itertools.count():
        rows.runner.clear()
        rows.guided.clear()
        join_rows(rows, [[5, 6], [7]], [VERTICES[0], VERTICES[2]])
        begun = rows.begin([([9, 8, 7], VERTICES[1], None)])
        rows.compute(begun)
        try:
            with FailingOps(number, sys.maxsize):  # no operation of the clean-up finds memory either
                rows.join(begun)
        except MemoryError:
            left.add(len(rows.runner))
        else:
            break
        if len(rows.runner):
            seen.append(rows.step(newest))
            torch.testing.assert_close(seen[-1], seen[0], **TOLERANCE)
        else:
            with pytest.raises((ValueError, RuntimeError)):
                rows.step(newest)
    assert left <= {0, 4}


@pytest.mark.parametrize("backend", RUNNERS)
def test_a_runner_that_combines_no_rows_refuses_to(backend: str) -> None:
    rows = start(backend, adapted("llama"))
    logits = join_rows(rows, [[5, 6]], [VERTICES[0]])
    combined = [Read(0, 1, -1.0, 2.0)]
    if rows.runner.combines:
        assert rows.read(torch.tensor([7]), combined).shape == logits.safe.shape
    else:
        with pytest.raises(ValueError, match="combines no rows"):
            rows.read(torch.tensor([7]), combined)


@pytest.mark.parametrize("backend", RUNNERS)
def test_a_preference_has_as_many_weights_as_the_adapter(backend: str) -> None:
    rows = start(backend, adapted("llama"))
    with pytest.raises(InvalidRequest):
        join_rows(rows, [[3]], [[1.0]])
    assert len(rows) == 0


def test_a_preference_needs_an_adapter() -> None:
    for runner in (TransformersRunner(tiny_llama()), LeanRunner(LeanModel(tiny_llama()))):
        with pytest.raises(InvalidRequest):
            join_rows(TwinRows(runner), [[3]], [[1.0]])


def test_ids_past_the_vocabulary_are_dropped() -> None:
    model = LeanModel(tiny_llama())
    for runner in (TransformersRunner(tiny_llama(), vocab_size=200), LeanRunner(model, vocab_size=200)):
        assert join_rows(TwinRows(runner), [[3]], [None]).safe.shape == (1, 200)


def test_lean_holds_the_weights_once() -> None:
    model = tiny_family("llama", tie_word_embeddings=False)
    LeanModel(model)
    left = sum(parameter.numel() for parameter in model.parameters())
    assert left < 259 * 32 + 9 * 32 + 1  # embeddings and norms
    with pytest.raises(RuntimeError):
        model(torch.tensor([[3]]))


UNSUPPORTED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "sliding window": (lambda: tiny_family("mistral", sliding_window=8), "sliding_window"),
    "some sliding layers": (
        lambda: tiny_family("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=2),
        "sliding_window",
    ),
    "dynamic frequencies": (
        lambda: tiny_family("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}),
        "rope_parameters",
    ),
    "yarn": (
        lambda: tiny_family("llama", rope_parameters={"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 2.0}),
        "rope_parameters",
    ),
    "another activation": (lambda: tiny_family("llama", hidden_act="gelu"), "hidden_act"),
    "another family": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=32, n_layer=1, n_head=2, n_positions=64)),
        "model_type",
    ),
    "half precision": (lambda: tiny_llama().half(), "dtype"),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_what_lean_does_not_compute_exactly_it_refuses(kind: str) -> None:
    make, field = UNSUPPORTED[kind]
    model = make()
    assert not supports(model)
    with pytest.raises(InvalidCheckpoint, match=field):
        LeanModel(model)
    assert all(parameter.numel() for parameter in model.parameters())
