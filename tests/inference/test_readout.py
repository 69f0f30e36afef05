"""Streams that come mixed: the same distribution from one row of the head, and nobody else notices."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest
import torch

from armature.algorithms.guided_decoding import FORMS, Mixture
from armature.contracts.specs.arm import AdapterShape
from armature.inference.batch import sample_sequences
from armature.inference.lean.model import LeanModel
from armature.inference.lean.runner import LeanRows
from armature.inference.model import GuidedModel
from armature.inference.request import Guide, GuidedRequest, Instruction
from armature.inference.runner import Mixed
from armature.modeling.adapters.peft_pblora import adapter_layers
from tests.support.adapters import add_random_adapter
from tests.support.rows import join_rows
from tests.support.tiny_models import tiny_family, tiny_llama

ATTRIBUTES = ("empathy", "truthfulness", "helpfulness")
PREFERENCES = [[1.0, 0.0, 0.0], None, [0.2, 0.3, 0.5], [0.0, 0.5, 0.5], None]
PROMPTS = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14], [15]]
NEVER = frozenset({-1})


def rows(family: str = "llama", dtype: torch.dtype = torch.float32) -> LeanRows:
    """Five requests under way, three of them guided; the same at every call."""
    base = tiny_family(family).to(dtype)
    started = LeanRows(LeanModel(add_random_adapter(base, list(ATTRIBUTES), shape=AdapterShape(layers="all"))), 3, 250)
    join_rows(started, PROMPTS, PREFERENCES)
    return started


def wishes(form: str, measured: tuple[int, ...] = (), mixed: tuple[int, ...] = (0, 2)) -> list[Mixed | None]:
    return [
        Mixed(Mixture.of(form, 0.5 + slot), slot in measured) if slot in mixed else None for slot in range(len(PROMPTS))
    ]


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_mixture_is_the_guided_distribution(family: str, form: str) -> None:
    apart, mixing, tokens = rows(family), rows(family), torch.tensor([20, 21, 22, 23, 24])
    assert mixing.mixes
    for measured in [(), (2,), (0, 2)]:
        expected, mixed = apart.step(tokens), mixing.step(tokens, wishes(form, measured))
        for slot, wish in enumerate(wishes(form)):
            safe, arm = expected.safe[slot], expected.arm[slot]
            if wish is None:  # to the bit, whatever happens beside it
                assert torch.equal(mixed.safe[slot], safe)
                assert torch.equal(mixed.arm[slot], arm)
                continue
            log_safe = safe.log_softmax(-1)
            guided = log_safe + wish.mixture.arm * FORMS[form](arm.log_softmax(-1), log_safe)
            torch.testing.assert_close(mixed.arm[slot].log_softmax(-1), guided.log_softmax(-1), atol=1e-5, rtol=0)
            assert torch.equal(mixed.safe[slot], mixed.arm[slot])
        if measured:
            assert mixed.measured is not None
            assert torch.equal(mixed.measured, expected.safe[list(measured)])
        else:
            assert mixed.measured is None


def test_mixing_in_bfloat16_rounds_no_more_than_telling_apart() -> None:
    tokens = torch.tensor([20, 21, 22, 23, 24])
    exact = rows().step(tokens, wishes("reference"))
    mixed = rows(dtype=torch.bfloat16).step(tokens, wishes("reference"))
    apart = rows(dtype=torch.bfloat16).step(tokens)
    for slot, wish in enumerate(wishes("reference")):
        if wish is not None:
            truth = exact.arm[slot].log_softmax(-1)
            late = torch.lerp(apart.safe[slot].float(), apart.arm[slot].float(), wish.mixture.arm).log_softmax(-1)
            error = (mixed.arm[slot].float().log_softmax(-1) - truth).abs().mean()
            assert error <= 1.25 * (late - truth).abs().mean() + 1e-4


def test_who_leaves_takes_its_wish_along() -> None:
    apart, mixing, tokens = rows(), rows(), torch.tensor([20, 21, 22, 23, 24])
    first = wishes("sum", mixed=(2,))
    mixing.step(tokens, first)
    first[2] = None  # what the caller does to its list is its own affair
    apart.step(tokens)
    for one in (apart, mixing):
        one.keep([4, 2, 3])
    wished = wishes("sum")
    mixed, expected = mixing.step(tokens[:3], [wished[4], wished[2], wished[3]]), apart.step(tokens[:3])
    assert torch.equal(mixed.safe[[0, 2]], expected.safe[[0, 2]])
    assert torch.equal(mixed.arm[[0, 2]], expected.arm[[0, 2]])
    torch.testing.assert_close(mixed.arm[1], expected.safe[1] + 2.5 * expected.arm[1], atol=1e-4, rtol=0)


MIXES = GuidedRequest((9, 8, 7), 24, guide=Guide((0.2, 0.3, 0.5), 2.0), seed=3, temperature=0.9)


def test_who_asks_for_a_stream_of_its_own_is_not_mixed() -> None:
    assert MIXES.mixes
    assert MIXES.guide is not None
    instruction = {"instruction": Instruction(1.0), "instructed_prompt": (4, 9, 8, 7)}
    for other in (
        {"guide": None},
        {"guide": dataclasses.replace(MIXES.guide, weight=0.0)},
        {"guide": dataclasses.replace(MIXES.guide, safe_set_delta=4.0)},
        {"guide": dataclasses.replace(MIXES.guide, strict=True)},
        {"top_logprobs": 0},
        instruction,
    ):
        assert not dataclasses.replace(MIXES, **other).mixes
    assert dataclasses.replace(MIXES, logit_bias=((4, 2.0),)).mixes
    assert dataclasses.replace(MIXES, **{**instruction, "instruction": Instruction(0.0)}).mixes


def models() -> list[GuidedModel]:
    """The reference, which tells all streams apart, and one that mixes."""
    reference, lean = (add_random_adapter(tiny_llama(seed=3), list(ATTRIBUTES)) for _ in range(2))
    return [GuidedModel(model, NEVER, 259, ATTRIBUTES, "reference") for model in (reference, LeanModel(lean))]


def company() -> list[GuidedRequest]:
    """Mixed requests in a batch with every other kind."""
    biased = dataclasses.replace(MIXES, logit_bias=((7, 3.0), (9, -100.0)), seed=5, measured_every=4)
    return [
        MIXES,
        dataclasses.replace(MIXES, guide=Guide((1.0, 0.0, 0.0), 4.0, 3.0), seed=4),
        biased,
        dataclasses.replace(MIXES, guide=None),
        dataclasses.replace(MIXES, instruction=Instruction(2.0), instructed_prompt=(4, 5, 9, 8, 7)),
        dataclasses.replace(MIXES, top_logprobs=2, max_tokens=11),
        dataclasses.replace(MIXES, measured_every=16, temperature=0.0),
        dataclasses.replace(MIXES, guide=Guide((0.0, 0.4, 0.6), 32.0), seed=6),
    ]


def test_the_reference_says_the_same_of_every_kind_of_company() -> None:
    told_apart, mixed = (sample_sequences(model, company()) for model in models())
    for request, expected, sequence in zip(company(), told_apart, mixed, strict=True):
        assert [token.token for token in sequence] == [token.token for token in expected]
        for ours, theirs in zip(sequence, expected, strict=True):
            if ours.divergence is not None:
                assert ours.divergence == pytest.approx(theirs.divergence, abs=1e-4)
            assert (ours.divergence is None) == (theirs.divergence is None)
        measured = sum(token.divergence is not None for token in sequence)
        assert abs(measured - len(sequence) / request.measured_every) <= 1


def test_measuring_changes_no_token_and_comes_round() -> None:
    _, lean = models()
    often, seldom = (
        sample_sequences(lean, [dataclasses.replace(MIXES, measured_every=every, seed=seed) for seed in range(6)])
        for every in (1, 8)
    )
    assert [[token.token for token in one] for one in often] == [[token.token for token in one] for one in seldom]
    for one in seldom:
        told = [number for number, token in enumerate(one) if token.divergence is not None]
        assert {after - before for before, after in pairwise(told)} == {8}
    starts = {[token.divergence is not None for token in one].index(True) for one in seldom}
    assert len(starts) == 6  # not all at once


@pytest.mark.parametrize("weight", [math.nan, 1e13])
def test_an_arm_that_gives_no_number_likes_nothing(weight: float) -> None:
    broken = [add_random_adapter(tiny_llama(seed=3), list(ATTRIBUTES)) for _ in range(2)]
    for layer in (layer for model in broken for layer in adapter_layers(model).values()):
        for name, parameter in layer.named_parameters():
            if not name.startswith("base_layer"):
                parameter.data.mul_(weight)
    for model in (broken[0], LeanModel(broken[1])):
        guided = GuidedModel(model, NEVER, 259, ATTRIBUTES, "reference")
        plain = dataclasses.replace(MIXES, guide=None)
        sequences = sample_sequences(guided, [MIXES, plain])
        assert [token.token for token in sequences[0]] == [token.token for token in sequences[1]]
        assert max(token.divergence or 0.0 for token in sequences[0]) < 1e-4
