"""Prompts that begin alike are computed once, and nobody can tell from the tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from armature.contracts.specs.arm import AdapterShape
from armature.modeling.guided_batch import GuidedBatch
from armature.modeling.guided_model import GuidedModel
from armature.modeling.guided_request import Guide, GuidedRequest
from armature.modeling.lean.model import LeanModel
from armature.modeling.lean.rows import LeanRows
from armature.modeling.prefix_cache import BLOCK_TOKENS, PrefixCache, block_columns, look_up
from armature.modeling.rows import RowRequest, TwinLogits
from tests.support.adapters import add_random_adapter
from tests.support.tiny_models import tiny_llama

ATTRIBUTES = ("empathy", "truthfulness", "helpfulness")
ROOMY = 1 << 24
EMPATHY, MIXED = (1.0, 0.0, 0.0), (0.2, 0.3, 0.5)
SYSTEM = tuple(range(3, 3 + 2 * BLOCK_TOKENS + 5))
PROMPTS = [(*SYSTEM, *(30 + number, *range(40, 40 + 7 * number))) for number in range(5)]


@pytest.fixture(scope="module", params=["all", "upper_half"])
def model(request: pytest.FixtureRequest) -> LeanModel:
    shape = AdapterShape(layers=request.param)
    return LeanModel(add_random_adapter(tiny_llama(seed=3), list(ATTRIBUTES), shape=shape))


class Counts:
    """What a cache was asked for and what it knew, in tokens."""

    def __init__(self) -> None:
        self.asked, self.found = 0, 0

    def __call__(self, asked: int, found: int) -> None:
        self.asked += asked
        self.found += found


def compute(rows: LeanRows, requests: Sequence[RowRequest], chunk: int = 1000) -> TwinLogits:
    prefill = rows.begin(requests)
    while prefill.remaining:
        prefill.advance(chunk)
    rows.join(prefill)
    return prefill.logits


@pytest.mark.parametrize("chunk", [1000, 20])
def test_logits_after_a_cached_beginning_are_those_after_a_computed_one(model: LeanModel, chunk: int) -> None:
    """In one group: both streams known, the safe one alone, none, a request without an ARM, a prompt without blocks."""
    counts = Counts()
    cached = LeanRows(model, len(ATTRIBUTES), prefixes=PrefixCache(ROOMY, counts))
    plain = LeanRows(model, len(ATTRIBUTES))
    compute(cached, [RowRequest(PROMPTS[0], EMPATHY, "a")])
    assert counts.found == 0
    cached.keep([])
    group = [
        RowRequest(PROMPTS[1], EMPATHY, "a"),
        RowRequest(PROMPTS[2], MIXED, "a"),
        RowRequest(PROMPTS[3], MIXED, "b"),
        RowRequest(PROMPTS[4], None, "a"),
        RowRequest((9, 8, 7), MIXED, "a"),
    ]
    results = [compute(rows, group, chunk) for rows in (cached, plain)]
    results += [rows.step(torch.arange(20, 25)) for rows in (cached, plain)]
    assert counts.found == 4 * 2 * BLOCK_TOKENS  # safe for three, ARM for the first
    for ours, theirs in ((results[0], results[1]), (results[2], results[3])):
        torch.testing.assert_close(ours.safe, theirs.safe, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.arm, theirs.arm, atol=1e-5, rtol=0)


def test_tokens_do_not_depend_on_what_is_cached(model: LeanModel) -> None:
    guided = GuidedModel(model, frozenset({-1}), 259, ATTRIBUTES, "reference")
    counts = Counts()
    batch = GuidedBatch(guided, PrefixCache(ROOMY, counts))
    for number in range(40):
        preference = (EMPATHY, MIXED)[number % 2]
        one = GuidedRequest(
            PROMPTS[number % 5],
            max_tokens=6,
            seed=number,
            guide=Guide(preference, 2.0, 4.0) if number % 3 else None,
            temperature=1.0,
            cache_scope="ab"[number % 7 == 0],
        )
        assert generate(batch, one) == generate(GuidedBatch(guided), dataclasses.replace(one, cache_scope=None))
    assert counts.found > 0.8 * counts.asked


def generate(batch: GuidedBatch, one: GuidedRequest) -> list[int]:
    tokens = [batch.join(batch.begin([one]))[0].token]
    tokens += [batch.step()[0].token for _ in range(one.max_tokens - 1)]
    batch.keep([])
    return tokens


def test_scopes_do_not_see_each_other_and_no_scope_sees_nothing(model: LeanModel) -> None:
    counts = Counts()
    rows = LeanRows(model, len(ATTRIBUTES), prefixes=PrefixCache(ROOMY, counts))
    for scope in ("a", "b", None):
        compute(rows, [RowRequest(PROMPTS[0], EMPATHY, scope)])
    assert counts.found == 0
    compute(rows, [RowRequest(PROMPTS[0], EMPATHY, "b")])
    assert counts.found == 2 * 2 * BLOCK_TOKENS


def test_bytes_are_bounded_and_the_beginning_of_what_is_used_stays(model: LeanModel) -> None:
    unbounded = PrefixCache(ROOMY)
    compute(LeanRows(model, len(ATTRIBUTES), prefixes=unbounded), [RowRequest(PROMPTS[0], EMPATHY, "a")])
    assert len(unbounded) == 4
    bounded = PrefixCache(unbounded.used_bytes)
    rows = LeanRows(model, len(ATTRIBUTES), prefixes=bounded)
    for prompt in [tuple(range(begin, begin + 100)) for begin in range(3, 100, 9)]:
        compute(rows, [RowRequest(PROMPTS[0], EMPATHY, "a")])
        compute(rows, [RowRequest(prompt, MIXED, "a")])
        assert 0 < bounded.used_bytes <= unbounded.used_bytes
    assert look_up(bounded, "a", MIXED, prompt).length > 0
    assert look_up(bounded, "a", EMPATHY, PROMPTS[0]).length == 0


def test_the_least_recently_used_goes_first_and_ends_go_before_beginnings() -> None:
    block = (torch.zeros(1),)
    cache = PrefixCache(3 * 4)
    first, second = [b"a1", b"a2"], [b"b1"]
    cache.put(first, lambda columns: block)
    cache.put(second, lambda columns: block)
    assert len(cache.find(first)) == 2
    cache.put([b"c1"], lambda columns: block)
    assert [len(cache.find(keys)) for keys in (first, second)] == [2, 0]
    cache.put([b"d1", b"d2"], lambda columns: block)
    assert len(cache.find(first)) == 1
    assert cache.used_bytes == 3 * 4


PROMPT = st.lists(st.integers(0, 2), min_size=BLOCK_TOKENS, max_size=3 * BLOCK_TOKENS)


@given(
    PROMPT,
    PROMPT,
    st.integers(0, 3 * BLOCK_TOKENS),
    st.sampled_from([None, EMPATHY, MIXED]),
    st.sampled_from([None, EMPATHY, MIXED]),
)
def test_two_prompts_share_their_common_blocks_and_no_more(
    first: list[int],
    other: list[int],
    cut: int,
    of_first: Sequence[float] | None,
    of_second: Sequence[float] | None,
) -> None:
    second = first[:cut] + other
    cache = PrefixCache(ROOMY)
    cache.put(look_up(cache, "a", of_first, first).keys, lambda columns: (torch.tensor(first[columns]),))
    common = 0
    if of_first == of_second:
        for columns in block_columns(min(len(first), len(second) - 1) // BLOCK_TOKENS):
            if first[columns] != second[columns]:
                break
            common += BLOCK_TOKENS
    assert look_up(cache, "a", of_second, second).length == common
    assert look_up(cache, "b", of_second, second).length == 0
