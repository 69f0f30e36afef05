"""A smaller ARM guides a bigger base: every row equals a forward of its own model alone, whoever shares the batch."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from armature.algorithms.guided_decoding import FORMS
from armature.contracts.artifacts import LossForm
from armature.errors import InvalidRequest
from armature.inference.batch import generate_guided, sample_sequences
from armature.inference.lean.model import LeanModel
from armature.inference.model import GuidedModel, start_rows
from armature.inference.request import Guide, GuidedRequest, Instruction
from armature.inference.runner import RowRequest, Rows, TwinLogits
from armature.modeling.adapters.peft_pblora import preferences
from tests.support.adapters import add_random_adapter
from tests.support.rows import join_rows
from tests.support.tiny_models import tiny_llama

ATTRIBUTES = ("empathy", "truthfulness")
NEVER = frozenset({-1})
V = 259
TOLERANCE = {"atol": 1e-5, "rtol": 0.0}
WEIGHTS = [[1.0, 0.0], [0.25, 0.75], None]
RUN: dict[str, Callable[[PreTrainedModel], Any]] = {"hf": lambda model: model, "lean": LeanModel}


def base() -> PreTrainedModel:
    return tiny_llama(seed=5, layers=4)


def arm() -> PeftModel:
    return add_random_adapter(tiny_llama(seed=8, layers=1), list(ATTRIBUTES))


def guided_model(form: LossForm = "reference", run_base: str = "hf", run_arm: str = "hf") -> GuidedModel:
    return GuidedModel(RUN[run_base](base()), NEVER, V, ATTRIBUTES, form, RUN[run_arm](arm()))


@pytest.fixture(params=[(one, other) for one in RUN for other in RUN], ids="-".join)
def rows(request: pytest.FixtureRequest) -> Rows:
    return start_rows(guided_model("reference", *request.param))


@torch.inference_mode()
def alone(ids: list[int], weight: list[float] | None, arm_ids: list[int] | None = None) -> TwinLogits:
    """What each model says by itself."""
    safe = base()(torch.tensor([ids])).logits[0, -1]
    if weight is None:
        return TwinLogits(safe, safe, safe)
    model, logits = arm(), []
    for gate in (True, False):
        with preferences(model, torch.tensor([weight]), gate=torch.tensor([gate])):
            logits.append(model(torch.tensor([arm_ids or ids])).logits[0, -1])
    return TwinLogits(safe, *logits)


def assert_alone(logits: TwinLogits, slot: int, wanted: TwinLogits) -> None:
    reference = logits.safe if logits.reference is None else logits.reference
    for found, expected in zip((logits.safe, logits.arm, reference), wanted[:3], strict=True):
        assert expected is not None
        torch.testing.assert_close(found[slot], expected, **TOLERANCE)


def test_all_streams_equal_the_two_models_alone(rows: Rows) -> None:
    sequences = [[5, 6, 7, 8], [9], [10, 11]]
    logits = join_rows(rows, sequences, WEIGHTS, chunk=3)
    for _ in range(3):
        for slot, (ids, weight) in enumerate(zip(sequences, WEIGHTS, strict=True)):
            assert_alone(logits, slot, alone(ids, weight))
        tokens = logits.arm.argmax(-1)
        sequences = [[*ids, token] for ids, token in zip(sequences, tokens.tolist(), strict=True)]
        logits = rows.step(tokens)
    assert logits.reference is not None
    assert not torch.allclose(logits.safe[0], logits.reference[0], atol=1e-2)


def test_each_model_reads_a_prompt_of_its_own(rows: Rows) -> None:
    prefill = rows.begin([RowRequest([5, 6], WEIGHTS[1], arm_prompt=[40, 41, 42, 5, 6])])
    while prefill.remaining:
        prefill.advance(2)
    rows.join(prefill)
    assert_alone(prefill.logits, 0, alone([5, 6], WEIGHTS[1], [40, 41, 42, 5, 6]))
    assert_alone(rows.step(torch.tensor([7])), 0, alone([5, 6, 7], WEIGHTS[1], [40, 41, 42, 5, 6, 7]))


@pytest.mark.parametrize("seed", range(2))
def test_requests_join_and_leave_without_touching_each_other(rows: Rows, seed: int) -> None:
    draw = random.Random(seed)
    live: list[tuple[list[int], list[float] | None]] = []
    for _ in range(20):
        if not live or draw.random() < 0.5:
            count = draw.randint(1, 3)
            new = [([draw.randrange(3, V)] * draw.randint(1, 6), draw.choice(WEIGHTS)) for _ in range(count)]
            join_rows(rows, [ids for ids, _ in new], [weight for _, weight in new])
            live += new
        elif draw.random() < 0.6:
            kept = draw.sample(range(len(live)), draw.randint(0, len(live)))
            rows.keep(sorted(kept))
            live = [live[slot] for slot in sorted(kept)]
        if live:
            tokens = [draw.randrange(3, V) for _ in live]
            logits = rows.step(torch.tensor(tokens))
            live = [([*ids, token], weight) for (ids, weight), token in zip(live, tokens, strict=True)]
            slot = draw.randrange(len(live))
            assert_alone(logits, slot, alone(*live[slot]))
        assert len(rows) == len(live)


def test_a_join_that_fails_leaves_both_models_as_they_were(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    join_rows(rows, [[5, 6]], [WEIGHTS[0]])
    prefill = rows.begin([RowRequest([9, 9, 9], WEIGHTS[1])])
    prefill.advance(100)
    with monkeypatch.context() as broken:
        broken.setattr(rows._base, "join", lambda _: (_ for _ in ()).throw(MemoryError()))  # type: ignore[attr-defined]
        with pytest.raises(MemoryError):
            rows.join(prefill)
    assert len(rows) == 1
    assert_alone(rows.step(torch.tensor([7])), 0, alone([5, 6, 7], WEIGHTS[0]))


def test_models_of_different_dtypes_answer_guided_and_unguided_requests_together() -> None:
    model = dataclasses.replace(guided_model(), model=base().bfloat16())
    requests = [GuidedRequest((5, 6), 4, guide=Guide((0.5, 0.5), 1.5)), GuidedRequest((7, 8, 9), 4)]
    assert generate_guided(model, requests) == [generate_guided(model, [one])[0] for one in requests]


def test_a_preference_that_the_arm_does_not_take_is_refused(rows: Rows) -> None:
    with pytest.raises(InvalidRequest):
        rows.begin([RowRequest([5], [1.0])])
    assert len(rows) == 0


@pytest.mark.parametrize("form", sorted(FORMS))
def test_the_product_rule_compares_the_arm_with_its_own_backbone(form: LossForm) -> None:
    model = guided_model(form)
    token = sample_sequences(model, [GuidedRequest((5, 6, 7), 1, guide=Guide((0.5, 0.5), 1.5), top_logprobs=V)])[0][0]
    safe, log_arm, reference = (one.log_softmax(-1) for one in alone([5, 6, 7], [0.5, 0.5]) if one is not None)
    q = log_arm - reference if form == "reference" else log_arm
    wanted = (safe + 1.5 * q).log_softmax(-1)
    for id, logprob in token.top:
        assert logprob == pytest.approx(wanted[id].item(), abs=1e-4)


def request(seed: int) -> GuidedRequest:
    draw = torch.Generator().manual_seed(seed)
    prompt = tuple(torch.randint(3, V, (1 + seed % 6,), generator=draw).tolist())
    one = GuidedRequest(prompt, 3 + seed % 5, seed, arm_prompt=(7, *prompt) if seed % 2 else ())
    if seed % 3:
        one = dataclasses.replace(one, guide=Guide((0.3, 0.7), 2.0, [None, 1.0][seed % 2]))
    if seed % 4 == 1:
        one = dataclasses.replace(one, instruction=Instruction(3.0), instructed_prompt=(20, 21, 22, *prompt))
    return one


@pytest.mark.parametrize("run", RUN)
def test_batched_requests_say_what_they_say_alone(run: str) -> None:
    model = guided_model("reference", run, run)
    requests = [request(seed) for seed in range(30)]
    together = generate_guided(model, requests, max_slots=7)
    assert together == [generate_guided(model, [one])[0] for one in requests]


def test_weight_0_is_the_base_bit_for_bit() -> None:
    plain = GuidedModel(base(), NEVER, V)
    for seed in range(5):
        one = dataclasses.replace(request(seed), guide=None, instruction=None, top_logprobs=4)
        off = dataclasses.replace(one, guide=Guide((1.0, 0.0), 0.0, 0.1))
        assert sample_sequences(guided_model(), [off]) == sample_sequences(plain, [one])


def test_the_memory_is_that_of_both() -> None:
    for run in RUN:
        both = guided_model("reference", run, run).kv_memory
        one, other = GuidedModel(RUN[run](base()), NEVER, V).kv_memory, GuidedModel(RUN[run](arm()), NEVER, V).kv_memory
        assert both.needed(4, 8, 64) == one.needed(4, 4, 64) + other.needed(4, 8, 64)
