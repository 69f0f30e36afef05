"""Combined reads: the same distribution from one row of the head, and no other row changes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from armature.algorithms.guided_decoding import FORMS, Mixture
from armature.contracts.specs.arm import AdapterShape
from armature.inference.batch import sample_sequences
from armature.inference.lean.model import LeanModel
from armature.inference.lean.runner import LeanRunner
from armature.inference.logits import Combination, ReadPlan, StreamLogits
from armature.inference.model import GuidedModel
from armature.inference.request import Guide, GuidedRequest, Instruction
from armature.inference.stream import Role
from armature.modeling.adapters.peft_pblora import adapter_layers
from tests.support.adapters import add_random_adapter
from tests.support.rows import TwinRows, join_rows, rows_of
from tests.support.tiny_models import tiny_family, tiny_llama

ATTRIBUTES = ("empathy", "truthfulness", "helpfulness")
PREFERENCES = [[1.0, 0.0, 0.0], None, [0.2, 0.3, 0.5], [0.0, 0.5, 0.5], None]
PROMPTS = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14], [15]]
NEVER = frozenset({-1})


def rows(family: str = "llama", dtype: torch.dtype = torch.float32) -> TwinRows:
    """Five requests under way, three of them guided; the same at every call."""
    base = tiny_family(family).to(dtype)
    model = LeanModel(add_random_adapter(base, list(ATTRIBUTES), shape=AdapterShape(layers="all")))
    started = TwinRows(LeanRunner(model, 3, 250))
    join_rows(started, PROMPTS, PREFERENCES)
    return started


def combinations(
    form: str, measured: tuple[int, ...] = (), combined: tuple[int, ...] = (0, 2)
) -> list[Combination | None]:
    return [
        Combination(Mixture.of(form, 0.5 + slot), slot in measured) if slot in combined else None
        for slot in range(len(PROMPTS))
    ]


def step(rows: TwinRows, tokens: torch.Tensor, wanted: Sequence[Combination | None]) -> StreamLogits:
    """As a batch does it."""
    roles: list[dict[Role, int]] = [
        {"safe": own[0]} | ({"arm": own[1]} if len(own) > 1 else {}) for own in rows_of(rows.guided)
    ]
    plan = ReadPlan.of(roles, wanted, tokens.device)
    return plan.gather(rows.read(tokens, plan.reads))


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_combination_is_the_guided_distribution(family: str, form: str) -> None:
    apart, combining, tokens = rows(family), rows(family), torch.tensor([20, 21, 22, 23, 24])
    assert combining.runner.combines
    for measured in [(), (2,), (0, 2)]:
        expected, combined = apart.step(tokens), step(combining, tokens, combinations(form, measured))
        for slot, combination in enumerate(combinations(form)):
            safe, arm = expected.safe[slot], expected.arm[slot]
            if combination is None:  # to the bit, whatever happens beside it
                assert torch.equal(combined.safe[slot], safe)
                assert torch.equal(combined.arm[slot], arm)
                continue
            log_safe = safe.log_softmax(-1)
            guided = log_safe + combination.mixture.arm * FORMS[form](arm.log_softmax(-1), log_safe)
            torch.testing.assert_close(combined.arm[slot].log_softmax(-1), guided.log_softmax(-1), atol=1e-5, rtol=0)
            assert torch.equal(combined.safe[slot], combined.arm[slot])
        if measured:
            assert combined.measured is not None
            assert torch.equal(combined.measured, expected.safe[list(measured)])
        else:
            assert combined.measured is None


def test_combining_in_bfloat16_rounds_no_more_than_reading_apart() -> None:
    tokens = torch.tensor([20, 21, 22, 23, 24])
    exact = step(rows(), tokens, combinations("reference"))
    combined = step(rows(dtype=torch.bfloat16), tokens, combinations("reference"))
    apart = rows(dtype=torch.bfloat16).step(tokens)
    for slot, combination in enumerate(combinations("reference")):
        if combination is not None:
            truth = exact.arm[slot].log_softmax(-1)
            late = torch.lerp(apart.safe[slot].float(), apart.arm[slot].float(), combination.mixture.arm)
            error = (combined.arm[slot].float().log_softmax(-1) - truth).abs().mean()
            assert error <= 1.25 * (late.log_softmax(-1) - truth).abs().mean() + 1e-4


def test_reads_follow_the_rows_that_stay() -> None:
    apart, combining, tokens = rows(), rows(), torch.tensor([20, 21, 22, 23, 24])
    step(combining, tokens, combinations("sum", combined=(2,)))
    apart.step(tokens)
    for one in (apart, combining):
        one.keep([2, 3, 4])
    wanted = combinations("sum")[2:]
    combined, expected = step(combining, tokens[:3], wanted), apart.step(tokens[:3])
    assert torch.equal(combined.safe[1:], expected.safe[1:])
    assert torch.equal(combined.arm[1:], expected.arm[1:])
    torch.testing.assert_close(combined.arm[0], expected.safe[0] + 2.5 * expected.arm[0], atol=1e-4, rtol=0)


COMBINES = GuidedRequest((9, 8, 7), 24, guide=Guide((0.2, 0.3, 0.5), 2.0), seed=3, temperature=0.9)


def test_a_request_that_needs_a_stream_is_not_combined() -> None:
    assert COMBINES.combines
    assert COMBINES.guide is not None
    instruction = {"instruction": Instruction(1.0), "instructed_prompt": (4, 9, 8, 7)}
    for other in (
        {"guide": None},
        {"guide": dataclasses.replace(COMBINES.guide, weight=0.0)},
        {"guide": dataclasses.replace(COMBINES.guide, safe_set_delta=4.0)},
        {"guide": dataclasses.replace(COMBINES.guide, strict=True)},
        {"top_logprobs": 0},
        instruction,
    ):
        assert not dataclasses.replace(COMBINES, **other).combines
    assert dataclasses.replace(COMBINES, logit_bias=((4, 2.0),)).combines
    assert dataclasses.replace(COMBINES, **{**instruction, "instruction": Instruction(0.0)}).combines


def models() -> list[GuidedModel]:
    """The reference, which reads all streams apart, and one that combines."""
    reference, lean = (add_random_adapter(tiny_llama(seed=3), list(ATTRIBUTES)) for _ in range(2))
    return [GuidedModel(model, NEVER, 259, ATTRIBUTES, "reference") for model in (reference, LeanModel(lean))]


def requests() -> list[GuidedRequest]:
    """Combined requests in a batch with every other kind."""
    biased = dataclasses.replace(COMBINES, logit_bias=((7, 3.0), (9, -100.0)), seed=5, measured_every=4)
    return [
        COMBINES,
        dataclasses.replace(COMBINES, guide=Guide((1.0, 0.0, 0.0), 4.0, 3.0), seed=4),
        biased,
        dataclasses.replace(COMBINES, guide=None),
        dataclasses.replace(COMBINES, instruction=Instruction(2.0), instructed_prompt=(4, 5, 9, 8, 7)),
        dataclasses.replace(COMBINES, top_logprobs=2, max_tokens=11),
        dataclasses.replace(COMBINES, measured_every=16, temperature=0.0),
        dataclasses.replace(COMBINES, guide=Guide((0.0, 0.4, 0.6), 32.0), seed=6),
    ]


def test_the_reference_runner_gives_the_same_tokens() -> None:
    read_apart, combined = (sample_sequences(model, requests()) for model in models())
    for request, expected, sequence in zip(requests(), read_apart, combined, strict=True):
        assert [token.token for token in sequence] == [token.token for token in expected]
        for ours, theirs in zip(sequence, expected, strict=True):
            if ours.divergence is not None:
                assert ours.divergence == pytest.approx(theirs.divergence, abs=1e-4)
            assert (ours.divergence is None) == (theirs.divergence is None)
        measured = sum(token.divergence is not None for token in sequence)
        assert abs(measured - len(sequence) / request.measured_every) <= 1


def test_measuring_changes_no_token_and_is_staggered() -> None:
    _, lean = models()
    often, seldom = (
        sample_sequences(lean, [dataclasses.replace(COMBINES, measured_every=every, seed=seed) for seed in range(6)])
        for every in (1, 8)
    )
    assert [[token.token for token in one] for one in often] == [[token.token for token in one] for one in seldom]
    for one in seldom:
        marked = [number for number, token in enumerate(one) if token.divergence is not None]
        assert {after - before for before, after in pairwise(marked)} == {8}
    starts = {[token.divergence is not None for token in one].index(True) for one in seldom}
    assert len(starts) == 6  # not all at once


@pytest.mark.parametrize("weight", [math.nan, 1e13])
def test_an_arm_that_is_not_finite_has_no_say(weight: float) -> None:
    broken = [add_random_adapter(tiny_llama(seed=3), list(ATTRIBUTES)) for _ in range(2)]
    for layer in (layer for model in broken for layer in adapter_layers(model).values()):
        for name, parameter in layer.named_parameters():
            if not name.startswith("base_layer"):
                parameter.data.mul_(weight)
    for model in (broken[0], LeanModel(broken[1])):
        guided = GuidedModel(model, NEVER, 259, ATTRIBUTES, "reference")
        plain = dataclasses.replace(COMBINES, guide=None)
        sequences = sample_sequences(guided, [COMBINES, plain])
        assert [token.token for token in sequences[0]] == [token.token for token in sequences[1]]
        assert max(token.divergence or 0.0 for token in sequences[0]) < 1e-4
