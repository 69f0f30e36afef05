"""Prompts that share a prefix are computed once, and the tokens stay the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from armature.contracts.specs.arm import AdapterShape
from armature.inference.batch import GuidedBatch
from armature.inference.lean.model import LeanModel
from armature.inference.model import GuidedModel, start_runner
from armature.inference.prefix_cache import BLOCK_TOKENS, PrefixCache, block_columns, look_up
from armature.inference.request import Guide, GuidedRequest
from armature.inference.stream import Stream
from tests.support.adapters import add_random_adapter
from tests.support.rows import TwinLogits, TwinRows
from tests.support.tiny_models import tiny_family, tiny_llama

ATTRIBUTES = ("empathy", "truthfulness", "helpfulness")
ROOMY = 1 << 24
EMPATHY, MIXED = (1.0, 0.0, 0.0), (0.2, 0.3, 0.5)
SYSTEM = tuple(range(3, 3 + 2 * BLOCK_TOKENS + 5))
PROMPTS = [(*SYSTEM, *(30 + number, *range(40, 40 + 7 * number))) for number in range(5)]


@pytest.fixture(scope="module", params=["lean-all", "lean-upper_half", "hf-all"])
def model(request: pytest.FixtureRequest) -> GuidedModel:
    backend, layers = request.param.split("-")
    adapted = add_random_adapter(tiny_llama(seed=3), list(ATTRIBUTES), shape=AdapterShape(layers=layers))
    runnable = LeanModel(adapted) if backend == "lean" else adapted
    return GuidedModel(runnable, frozenset({-1}), 259, ATTRIBUTES, "reference")


class Counts:
    """What a cache was asked for and what it knew, in tokens."""

    def __init__(self) -> None:
        self.asked, self.found = 0, 0

    def __call__(self, asked: int, found: int) -> None:
        self.asked += asked
        self.found += found


Asked = tuple[Sequence[int], Sequence[float] | None, str | None]


def start(model: GuidedModel, prefixes: PrefixCache | None = None) -> TwinRows:
    return TwinRows(start_runner(model, prefixes))


def compute(rows: TwinRows, requests: Sequence[Asked], chunk: int = 1000) -> TwinLogits:
    prefill = rows.begin(requests)
    logits = rows.compute(prefill, chunk)
    rows.join(prefill)
    return logits


@pytest.mark.parametrize("chunk", [1000, 20, 22])
def test_a_cached_prefix_gives_the_logits_of_a_computed_one(model: GuidedModel, chunk: int) -> None:
    """In one group: both streams known, the safe one alone, none, a request without an ARM, a prompt without blocks."""
    counts = Counts()
    cached = start(model, PrefixCache(ROOMY, counts))
    plain = start(model)
    compute(cached, [(PROMPTS[0], EMPATHY, "a")])
    assert counts.found == 0
    cached.keep([])
    group = [
        (PROMPTS[1], EMPATHY, "a"),
        (PROMPTS[2], MIXED, "a"),
        (PROMPTS[3], MIXED, "b"),
        (PROMPTS[4], None, "a"),
        ((9, 8, 7), MIXED, "a"),
    ]
    results = [compute(rows, group, chunk) for rows in (cached, plain)]
    results += [rows.step(torch.arange(20, 25)) for rows in (cached, plain)]
    assert counts.found == 4 * 2 * BLOCK_TOKENS  # safe for three, ARM for the first
    for ours, theirs in ((results[0], results[1]), (results[2], results[3])):
        torch.testing.assert_close(ours.safe, theirs.safe, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.arm, theirs.arm, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1000, 20])
def test_what_is_known_is_not_computed_again(model: GuidedModel, chunk: int) -> None:
    cached, plain = start(model, PrefixCache(ROOMY)), start(model)
    compute(cached, [(PROMPTS[0], EMPATHY, "a")])
    cached.keep([])
    group = [(prompt, EMPATHY, "a") for prompt in PROMPTS[1:4]]
    begun = [rows.begin(group).remaining for rows in (plain, cached)]
    assert begun[0] - begun[1] == 2 * BLOCK_TOKENS
    ours, theirs = (compute(rows, group, chunk) for rows in (cached, plain))
    torch.testing.assert_close(ours.arm, theirs.arm, atol=1e-5, rtol=0)
    for slots in ([0, 2], [1]):
        for rows in (cached, plain):
            rows.keep(slots)
        ours, theirs = (rows.step(torch.arange(20, 20 + len(slots))) for rows in (cached, plain))
        torch.testing.assert_close(ours.arm, theirs.arm, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.safe, theirs.safe, atol=1e-5, rtol=0)


UNFIT = {
    "sliding window": lambda: tiny_family("mistral", sliding_window=8),
    "frequencies that move": lambda: tiny_family(
        "llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_model_with_other_state_than_keys_uses_no_cache(kind: str) -> None:
    counts = Counts()
    cache = PrefixCache(ROOMY, counts)
    rows = start(GuidedModel(UNFIT[kind](), frozenset({-1}), 259), cache)
    compute(rows, [(PROMPTS[0], None, "a")])
    rows.keep([])
    assert rows.begin([(PROMPTS[0], None, "a")]).remaining == len(PROMPTS[0])
    assert (counts.asked, len(cache)) == (0, 0)


def test_gpt2_is_cached_on_the_reference_back_end() -> None:
    """Positions that are learned, and no rotary embedding at all."""
    config = GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=2, n_positions=128)
    torch.manual_seed(1)
    model = GuidedModel(GPT2LMHeadModel(config).eval(), frozenset({-1}), 259)
    cached, plain = start(model, PrefixCache(ROOMY)), start(model)
    compute(cached, [(PROMPTS[0], None, "a")])
    cached.keep([])
    group = [(prompt, None, "a") for prompt in PROMPTS[1:3]]
    assert cached.begin(group).remaining == len(PROMPTS[2]) - 2 * BLOCK_TOKENS
    results = [compute(rows, group) for rows in (cached, plain)]
    results += [rows.step(torch.tensor([20, 21])) for rows in (cached, plain)]
    for ours, theirs in (results[:2], results[2:]):
        torch.testing.assert_close(ours.safe, theirs.safe, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_tokens_do_not_depend_on_what_is_cached(model: GuidedModel) -> None:
    counts = Counts()
    batch = GuidedBatch(model, PrefixCache(ROOMY, counts))
    for number in range(40):
        preference = (EMPATHY, MIXED)[number % 2]
        one = GuidedRequest(
            PROMPTS[number % 5],
            max_tokens=6,
            seed=number,
            guide=Guide(preference, 2.0, 4.0) if number % 3 else None,
            temperature=1.0,
            namespace="ab"[number % 7 == 0],
        )
        assert generate(batch, one) == generate(GuidedBatch(model), dataclasses.replace(one, namespace=None))
    assert counts.found > 0.8 * counts.asked


def generate(batch: GuidedBatch, one: GuidedRequest) -> list[int]:
    tokens = [batch.join(batch.begin([one]))[0].token]
    tokens += [batch.step()[0].token for _ in range(one.max_tokens - 1)]
    batch.clear()
    return tokens


@pytest.mark.parametrize("backend", ["hf", "lean"])
def test_a_prompt_that_overflows_spoils_no_beginning_for_others(backend: str) -> None:
    base = tiny_family("llama", tie_word_embeddings=False)
    base.get_input_embeddings().weight.data[200] = torch.inf
    adapted = add_random_adapter(base, list(ATTRIBUTES))
    runnable = LeanModel(adapted) if backend == "lean" else adapted
    model = GuidedModel(runnable, frozenset({-1}), 259, ATTRIBUTES, "reference")
    cached, plain = start(model, PrefixCache(ROOMY)), start(model)
    compute(cached, [((*SYSTEM, 200), EMPATHY, "a"), ((*SYSTEM, 9, 8), MIXED, "a")])
    request = [((*SYSTEM, 30), EMPATHY, "a")]
    for ours, theirs in zip(compute(cached, request)[:2], compute(plain, request)[:2], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_scopes_do_not_see_each_other_and_no_scope_sees_nothing(model: GuidedModel) -> None:
    counts = Counts()
    rows = start(model, PrefixCache(ROOMY, counts))
    for scope in ("a", "b", None):
        compute(rows, [(PROMPTS[0], EMPATHY, scope)])
    assert counts.found == 0
    compute(rows, [(PROMPTS[0], EMPATHY, "b")])
    assert counts.found == 2 * 2 * BLOCK_TOKENS


def test_bytes_are_bounded_and_the_beginning_of_what_is_used_stays(model: GuidedModel) -> None:
    unbounded = PrefixCache(ROOMY)
    compute(start(model, unbounded), [(PROMPTS[0], EMPATHY, "a")])
    assert len(unbounded) == 4
    bounded = PrefixCache(unbounded.used_bytes)
    rows = start(model, bounded)
    for prompt in [tuple(range(begin, begin + 100)) for begin in range(3, 100, 9)]:
        compute(rows, [(PROMPTS[0], EMPATHY, "a")])
        compute(rows, [(prompt, MIXED, "a")])
        assert 0 < bounded.used_bytes <= unbounded.used_bytes
    assert look_up(bounded, arm_stream(prompt, MIXED)).length > 0
    assert look_up(bounded, arm_stream(PROMPTS[0], EMPATHY)).length == 0


def test_eviction_is_least_recently_used_and_from_the_end() -> None:
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


def arm_stream(prompt: Sequence[int], preference: Sequence[float] | None, namespace: str = "a") -> Stream:
    return Stream(prompt, preference, namespace=namespace)


PROMPT = st.lists(st.integers(0, 2), min_size=BLOCK_TOKENS, max_size=3 * BLOCK_TOKENS)


@pytest.mark.slow
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
    cache.put(look_up(cache, arm_stream(first, of_first)).keys, lambda columns: (torch.tensor(first[columns]),))
    common = 0
    if of_first == of_second:
        for columns in block_columns(min(len(first), len(second) - 1) // BLOCK_TOKENS):
            if first[columns] != second[columns]:
                break
            common += BLOCK_TOKENS
    assert look_up(cache, arm_stream(second, of_second)).length == common
    assert look_up(cache, arm_stream(second, of_second, "b")).length == 0
