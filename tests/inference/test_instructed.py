"""An instruction's stream runs beside the request's own, on every runner, and changes no other row."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from armature.algorithms.instruction_steering import Steering, adapt_temperatures, divergence, steer
from armature.inference.batch import GuidedBatch, Sampled, sample_sequences
from armature.inference.lean.model import LeanModel
from armature.inference.model import GuidedModel
from armature.inference.request import Guide, GuidedRequest, Instruction
from tests.support.adapters import add_random_adapter
from tests.support.generate import generate_guided
from tests.support.tiny_models import tiny_llama

ATTRIBUTES = ("empathy", "truthfulness")
NEVER = frozenset({-1})
V = 259


def reference() -> torch.nn.Module:
    return add_random_adapter(tiny_llama(seed=3), list(ATTRIBUTES))


@pytest.fixture(scope="module", params=[lambda model: model, LeanModel], ids=["hf", "lean"])
def model(request: pytest.FixtureRequest) -> GuidedModel:
    return GuidedModel(request.param(reference()), NEVER, V, ATTRIBUTES, "reference")


@torch.inference_mode()
def log_probs(prompt: list[int]) -> torch.Tensor:
    """Of the safe base alone, by a forward of its own."""
    return tiny_llama(seed=3)(torch.tensor([prompt])).logits[:, -1].float().log_softmax(-1)


def request(seed: int) -> GuidedRequest:
    """With an instruction or without, with an ARM or without, of any strength."""
    draw = torch.Generator().manual_seed(seed)
    prompt = tuple(torch.randint(3, V, (1 + seed % 6,), generator=draw).tolist())
    told = (*torch.randint(3, V, (1 + seed % 11,), generator=draw).tolist(), *prompt)
    instruction = Instruction([3.0, 0.5, 1.0, 0.0][seed % 4], [None, 0.05][seed % 2], 0.2, [None, 4.0][seed % 2])
    return GuidedRequest(
        prompt,
        max_tokens=3 + seed % 5,
        seed=seed,
        guide=Guide((0.3, 0.7), 2.0, 5.0) if seed % 3 else None,
        temperature=[0.0, 0.9][seed % 5 > 0],
        instruction=instruction if seed % 5 else None,
        instructed_prompt=told if seed % 5 else (),
        top_logprobs=0,
    )


def test_the_distribution_is_that_of_two_separate_contexts(model: GuidedModel) -> None:
    prompt, told = [9, 8, 7], [20, 21, 22, 23, 9, 8, 7]
    one = GuidedRequest(
        tuple(prompt), 4, instruction=Instruction(2.5), instructed_prompt=tuple(told), top_logprobs=0, seed=5
    )
    for token in sample_sequences(model, [one])[0]:
        log_1, log_2 = log_probs(prompt), log_probs(told)
        wanted = steer(log_1, log_2, torch.tensor([2.5])).log_softmax(-1)[0, token.token].item()
        assert token.logprob == pytest.approx(wanted, abs=1e-4)
        assert token.safe_logprob == pytest.approx(log_1[0, token.token].item(), abs=1e-4)
        prompt, told = [*prompt, token.token], [*told, token.token]


def test_arm_and_instruction_combine_inside_the_safe_set(model: GuidedModel) -> None:
    prompt, told, weight, delta = (9, 8), (30, 31, 32, 9, 8), 1.5, 0.5
    asked = GuidedRequest(
        prompt,
        1,
        guide=Guide((1.0, 0.0), weight, delta),
        instruction=Instruction(3.0, safe_set_delta=delta),
        instructed_prompt=told,
        top_logprobs=V,
    )
    token = sample_sequences(model, [asked])[0][0]
    alone = dataclasses.replace(asked, instruction=None)
    guided = dict(sample_sequences(model, [dataclasses.replace(alone, guide=Guide((1.0, 0.0), weight))])[0][0].top)
    log_1, log_2 = log_probs(list(prompt))[0], log_probs(list(told))[0]
    liked = torch.tensor([guided[id] for id in range(V)]) - log_1  # w q up to a constant
    wished = steer(log_1[None], log_2[None], torch.tensor([3.0]))[0] + liked
    wanted = wished.masked_fill(log_1 < log_1.max() - delta, -math.inf).log_softmax(-1)
    found = dict(token.top)
    assert set(found) == set((wanted > -math.inf).nonzero().flatten().tolist())
    assert 1 < len(found) < V
    for id, logprob in found.items():
        assert logprob == pytest.approx(wanted[id].item(), abs=1e-3)


@pytest.mark.slow
def test_batching_changes_no_token(model: GuidedModel) -> None:
    requests = [request(seed) for seed in range(40)]
    together = generate_guided(model, requests, max_slots=7)  # so that they join and leave
    assert together == [generate_guided(model, [one])[0] for one in requests]


def test_strength_0_is_as_if_there_were_no_instruction(model: GuidedModel) -> None:
    for seed in range(8):
        one = dataclasses.replace(request(seed), instruction=Instruction(0.0, 0.01, 0.1, 0.5), top_logprobs=3)
        assert sample_sequences(model, [one]) == sample_sequences(model, [dataclasses.replace(one, instruction=None)])


def test_both_runners_give_the_same_tokens() -> None:
    requests = [request(seed) for seed in range(20)]
    hf, lean = (GuidedModel(run(reference()), NEVER, V, ATTRIBUTES, "reference") for run in (lambda m: m, LeanModel))
    assert generate_guided(hf, requests) == generate_guided(lean, requests)


def test_prefill_in_pieces_changes_no_token(model: GuidedModel) -> None:
    requests = [dataclasses.replace(request(1), instructed_prompt=tuple(range(3, 60))), request(2)]
    batch = GuidedBatch(model)
    joining, computed = batch.begin(requests), list[int]()
    while joining.prefill.remaining:
        computed.append(batch.advance(joining, 16))
    first: list[Sampled] = batch.join(joining)
    assert len(computed) > 5
    assert sum(computed) >= sum(one.prompt_tokens for one in requests)
    second = batch.step()
    for index, one in enumerate(requests):
        assert generate_guided(model, [one])[0][:2] == [first[index].token, second[index].token]


def test_the_temperature_follows_the_divergence(model: GuidedModel) -> None:
    prompt, told = (9, 8, 7), (40, 41, 42, 43, 9, 8, 7)
    log_1, log_2 = log_probs(list(prompt)), log_probs(list(told))
    steering = Steering(torch.tensor([3.0]), torch.tensor([1e-4]), torch.tensor([0.1]))
    cooled = adapt_temperatures(torch.tensor([1.5]), divergence(log_1, log_2), steering).item()
    assert 0.1 <= cooled < 1.4
    own = GuidedRequest(prompt, 1, temperature=1.5, instruction=Instruction(3.0, 1e-4, 0.1), instructed_prompt=told)
    fixed = dataclasses.replace(own, temperature=cooled, instruction=Instruction(3.0))
    hot = dataclasses.replace(fixed, temperature=1.5)

    def drawn(one: GuidedRequest) -> list[list[int]]:
        return generate_guided(model, [dataclasses.replace(one, seed=seed) for seed in range(60)])

    assert drawn(own) == drawn(fixed)
    assert drawn(own) != drawn(hot)
