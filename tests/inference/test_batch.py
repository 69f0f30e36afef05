"""Batched guided generation gives each request the tokens it gets alone, and the base's own without a guide."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from peft import PeftModel

from armature.inference.batch import GuidedBatch, Sampled, sample_sequences
from armature.inference.lean.model import LeanModel
from armature.inference.model import GuidedModel, eos_token_ids
from armature.inference.request import Guide, GuidedRequest, Instruction
from armature.modeling.adapters.peft_pblora import preferences
from tests.support.adapters import add_random_adapter
from tests.support.failing_ops import fail_at_every_operation
from tests.support.generate import generate_guided
from tests.support.tensors import default_dtype
from tests.support.tiny_models import byte_tokenizer, tiny_llama

ATTRIBUTES = ("empathy", "truthfulness", "helpfulness")
NEVER = frozenset({-1})


def adapted() -> PeftModel:
    """The model under test, as transformers runs it."""
    return add_random_adapter(tiny_llama(seed=3), list(ATTRIBUTES))


@pytest.fixture(scope="module", params=[lambda model: model, LeanModel], ids=["hf", "lean"])
def model(request: pytest.FixtureRequest) -> GuidedModel:
    return GuidedModel(request.param(adapted()), NEVER, 259, ATTRIBUTES, "reference")


def request(seed: int) -> GuidedRequest:
    """A different request for every seed: prompt, preference, weight, delta, filters and length all vary."""
    draw = torch.Generator().manual_seed(seed)
    uniform = torch.rand(8, generator=draw).tolist()
    p = torch.rand(3, generator=draw)
    delta = 6 * uniform[1] if seed % 3 else None
    guide = Guide(tuple((p / p.sum()).tolist()), 4 * uniform[0], delta, strict=bool(delta) and seed % 7 == 1)
    return GuidedRequest(
        prompt=tuple(torch.randint(3, 259, (1 + seed % 9,), generator=draw).tolist()),
        max_tokens=3 + seed % 7,
        seed=seed,
        guide=guide if seed % 4 else None,
        temperature=uniform[2] + 0.5 if seed % 5 else 0.0,
        top_p=uniform[3] * 0.5 + 0.5,
        top_k=seed % 50,
        min_p=uniform[4] * 0.05,
        logit_bias=((5 + seed % 60, 4.0), (9, -100.0)) if seed % 6 == 1 else (),
    )


def first_token(model: GuidedModel, one: GuidedRequest) -> Sampled:
    batch = GuidedBatch(model)
    return batch.join(batch.begin([one]))[0]


@pytest.mark.slow
@pytest.mark.trap(23)
def test_neighbours_do_not_change_the_tokens(model: GuidedModel) -> None:
    requests = [request(seed) for seed in range(200)]
    alone = [generate_guided(model, [one])[0] for one in requests]
    assert generate_guided(model, requests, max_slots=5) == alone
    assert generate_guided(model, requests[::-1], max_slots=24) == alone[::-1]
    assert [len(tokens) for tokens in alone] == [one.max_tokens for one in requests]


@pytest.mark.parametrize("run", [lambda model: model, LeanModel], ids=["hf", "lean"])
def test_a_model_that_is_loaded_meanwhile_changes_nothing(run: Callable[[PeftModel], PeftModel]) -> None:
    requests = [dataclasses.replace(request(seed), top_logprobs=2) for seed in range(24)]
    one, other = adapted(), adapted()
    expected = sample_sequences(GuidedModel(run(one), NEVER, 259, ATTRIBUTES, "reference"), requests)
    with default_dtype(torch.bfloat16):
        model = GuidedModel(run(other), NEVER, 259, ATTRIBUTES, "reference")
        assert sample_sequences(model, requests) == expected


def test_back_ends_give_the_same_tokens() -> None:
    requests = [request(seed) for seed in range(24)]
    answers = [
        generate_guided(GuidedModel(model, NEVER, 259, ATTRIBUTES, "reference"), requests)
        for model in (adapted(), LeanModel(adapted()))
    ]
    assert answers[0] == answers[1]


def test_the_same_seed_repeats_and_another_does_not(model: GuidedModel) -> None:
    one = dataclasses.replace(request(7), max_tokens=20, temperature=2.0, top_p=1.0, top_k=0, min_p=0.0)
    again, other = generate_guided(model, [one, one, dataclasses.replace(one, seed=8)])[1:]
    assert again == generate_guided(model, [one])[0]
    assert other != again


@pytest.mark.parametrize("weight", [None, 0.0])
def test_without_guidance_it_is_transformers_own_generate(model: GuidedModel, weight: float | None) -> None:
    prompt = (9, 8, 7)
    guide = None if weight is None else Guide((1.0, 0.0, 0.0), weight)
    expected = tiny_llama(seed=3).generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 3), max_new_tokens=16, do_sample=False, eos_token_id=None
    )
    greedy = GuidedRequest(prompt, max_tokens=16, guide=guide, temperature=0.0)
    assert generate_guided(model, [greedy])[0] == expected[0, 3:].tolist()


def test_guidance_changes_the_answer_and_the_preference_matters(model: GuidedModel) -> None:
    def tokens(*preference: float) -> list[int]:
        guide = Guide(preference, 4.0)
        return generate_guided(model, [GuidedRequest((5, 6), 12, guide=guide, temperature=0.0)])[0]

    plain = generate_guided(model, [GuidedRequest((5, 6), 12, temperature=0.0)])[0]
    assert len({tuple(plain), tuple(tokens(1, 0, 0)), tuple(tokens(0, 1, 0)), tuple(tokens(0, 0, 1))}) == 4


def test_every_token_is_in_the_safe_set(model: GuidedModel) -> None:
    delta, reference = 0.5, adapted()
    guide = Guide((0.0, 1.0, 0.0), 32.0, delta)
    one = GuidedRequest((3, 4, 5), 24, guide=guide, seed=11, temperature=2.0)
    ids = [*one.prompt, *generate_guided(model, [one])[0]]
    with torch.inference_mode(), preferences(reference, torch.zeros(1, 3), gate=torch.tensor([False])):
        log_safe = reference(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    for position in range(len(one.prompt) - 1, len(ids) - 1):
        step = log_safe[position]
        assert step[ids[position + 1]] >= step.max() - delta - 1e-5


def test_end_of_sequence_stops_and_is_not_part_of_the_output(model: GuidedModel) -> None:
    greedy = GuidedRequest((9, 8, 7), max_tokens=16, temperature=0.0)
    full = generate_guided(model, [greedy])[0]
    stopping = dataclasses.replace(model, eos_ids=frozenset({full[4]}))
    assert generate_guided(stopping, [greedy])[0] == full[: full.index(full[4])]


def test_log_probabilities_are_those_of_the_guided_distribution(model: GuidedModel) -> None:
    one = dataclasses.replace(request(7), top_logprobs=5, temperature=0.7)
    assert one.guide is not None
    sampled = first_token(model, one)
    everything = first_token(model, dataclasses.replace(one, top_logprobs=259))
    assert math.fsum(math.exp(p) for _, p in everything.top) == pytest.approx(1, abs=1e-5)
    assert sampled.top == everything.top[:5]
    assert sampled.logprob == dict(everything.top)[sampled.token]


def test_a_token_comes_with_its_parts(model: GuidedModel) -> None:
    one = GuidedRequest((3, 4, 5), 1, guide=Guide((0.2, 0.3, 0.5), 2.0), temperature=0.0, top_logprobs=259)
    plain = first_token(model, dataclasses.replace(one, guide=None))
    arm = first_token(model, one)
    base = dict(plain.top)
    assert arm.safe_logprob == pytest.approx(base[arm.token], abs=1e-5)
    # the reference form by hand: log pi~ = log pi_s + w (log pi_arm - log pi_s) - log Z
    assert arm.logprob is not None
    shift = arm.logprob - (arm.safe_logprob + 2.0 * (arm.arm_logprob - arm.safe_logprob))
    other = next(id for id, _ in arm.top if id != arm.token)
    pinned = dataclasses.replace(one, logit_bias=((other, 100.0),))
    moved = first_token(model, pinned)
    assert moved.token == other
    guided = moved.safe_logprob + 2.0 * (moved.arm_logprob - moved.safe_logprob) + shift
    assert guided == pytest.approx(dict(arm.top)[other], abs=1e-4)
    assert (plain.safe_logprob, plain.arm_logprob) == (plain.logprob, plain.logprob)


def test_a_join_that_fails_at_any_operation_leaves_the_batch_as_it_was(model: GuidedModel) -> None:
    one, other = (dataclasses.replace(request(seed), max_tokens=200) for seed in (7, 4))
    batch = GuidedBatch(model)
    tokens = [batch.join(batch.begin([one]))[0].token]
    joining = batch.begin([other])
    while joining.prefill.remaining:
        batch.advance(joining, 8)

    def check() -> None:
        (token,) = batch.step()
        tokens.append(token.token)

    assert fail_at_every_operation(lambda: batch.join(joining), check) > 20
    assert tokens == generate_guided(model, [one])[0][: len(tokens)]
    assert len(batch.step()) == 2


def test_a_prompt_is_scored_alone_and_under_streams_that_read_it(model: GuidedModel) -> None:
    batch, one = GuidedBatch(model), request(7)
    scored = dataclasses.replace(one, score_prompt=True)
    told = dataclasses.replace(scored, instruction=Instruction(2.0), instructed_prompt=(3, *one.prompt))
    for requests in ([scored, one], [one, scored], [scored, scored], [told]):
        with pytest.raises(ValueError, match="scored alone"):
            batch.begin(requests)
    joining = batch.begin([scored])
    batch.advance(joining, 100)
    assert len(joining.scored) == len(one.prompt) - 1


def test_eos_ids_are_the_tokenizers_and_the_models() -> None:
    model, tokenizer = tiny_llama(), byte_tokenizer()
    assert tokenizer.eos_token_id in eos_token_ids(model, tokenizer)
    model.generation_config.eos_token_id = [40, 41]
    assert eos_token_ids(model, tokenizer) == {40, 41, tokenizer.eos_token_id}
