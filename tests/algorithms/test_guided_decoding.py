"""Guided decoding: against brute force on a vocabulary of 8, and what must hold for every token whatever the ARM."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.algorithms.guided_decoding import (
    FORMS,
    GuidedDistribution,
    LogitBias,
    Mixture,
    SamplingParameters,
    choose_tokens,
    combine,
    guided_distribution,
    safe_divergence,
)
from armature.algorithms.safe_sets import restrict, safe_set

V = 8
LOGIT = st.floats(-20, 20, width=32) | st.just(-math.inf)
LOGITS = st.lists(LOGIT, min_size=V, max_size=V).filter(lambda row: max(row) > -math.inf)
ARM_LOGITS = LOGITS | st.lists(LOGIT | st.sampled_from([math.nan, math.inf]), min_size=V, max_size=V)
REQUEST = st.fixed_dictionaries(
    {
        "weight": st.sampled_from([0.0, 0.5, 1.0, 3.0, 32.0]),
        "delta": st.sampled_from([0.0, 1.0, 3.0, math.inf]),
        "strict": st.booleans(),
        "temperature": st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 3, 100]),
        "top_p": st.sampled_from([0.1, 0.5, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.05, 0.5]),
    }
)


def make_parameters(*requests: dict[str, float]) -> SamplingParameters:
    names = ("weight", "delta", "strict", "temperature", "top_k", "top_p", "min_p")
    return SamplingParameters(*(torch.tensor([request[name] for request in requests]) for name in names))


def plain(n: int = 1, **overrides: float) -> SamplingParameters:
    request = {"weight": 0.0, "delta": math.inf, "strict": False, "temperature": 1.0}
    return make_parameters(*[{**request, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **overrides}] * n)


def decide(
    safe: torch.Tensor, arm: torch.Tensor, parameters: SamplingParameters, uniforms: torch.Tensor, form: str
) -> tuple[GuidedDistribution, torch.Tensor]:
    """The distributions and the tokens drawn from them."""
    guided = guided_distribution(safe, arm, parameters, form)
    return guided, choose_tokens(guided, parameters, uniforms)


def inside(log_safe: torch.Tensor, deltas: torch.Tensor) -> torch.Tensor:
    """The safe set as booleans."""
    return log_safe >= log_safe.amax(-1, keepdim=True) - deltas[:, None]


def log_softmax(row: np.ndarray) -> np.ndarray:
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def brute_force(safe: np.ndarray, arm: np.ndarray, w: float, delta: float, form: str) -> np.ndarray:
    """The guided distribution by the formula, one token at a time."""
    log_s, log_a = log_softmax(safe), log_softmax(arm)
    weights = np.zeros(V)
    for v in range(V):
        if log_s[v] < log_s.max() - delta or log_s[v] == -math.inf:
            continue
        q = log_a[v] - log_s[v] if form == "reference" else log_a[v]
        weights[v] = math.exp(log_s[v] + w * q - 20 * w * (form == "reference")) if w else math.exp(log_s[v])
    return weights / weights.sum()


@given(
    st.lists(st.floats(-5, 5), min_size=V, max_size=V),
    st.lists(st.floats(-5, 5), min_size=V, max_size=V),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.sampled_from([0.5, 3.0, math.inf]),
    st.sampled_from(sorted(FORMS)),
)
@settings(deadline=None)
def test_the_guided_distribution_equals_brute_force(safe, arm, w, delta, form):
    log_safe, log_arm = (torch.tensor([row]).float().log_softmax(-1) for row in (safe, arm))
    threshold = float(log_safe.max()) - delta
    if (log_safe - threshold).abs().min() < 1e-4:
        return  # on the edge of the set, float32 and float64 may differ
    outside = safe_set(log_safe, torch.tensor([delta]))
    wished = combine(log_safe, FORMS[form](log_arm, log_safe), torch.tensor([w]))
    guided = restrict(wished, log_safe, outside)[0].log_softmax(-1)
    expected = brute_force(np.array(safe), np.array(arm), w, delta, form)
    assert 0.5 * np.abs(guided.exp()[0].double().numpy() - expected).sum() < 1e-5


@pytest.mark.parametrize("weight", [0.25, 1.0, 6.0])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_mixture_of_logits_is_the_guided_distribution(form, weight):
    generator = torch.Generator().manual_seed(2)
    safe, arm = 3 * torch.randn(2, 50, V, generator=generator)
    guided = guided_distribution(safe, arm, plain(50, weight=weight), form)
    mixture = Mixture.of(form, weight)
    scores = (mixture.safe + mixture.reference) * safe + mixture.arm * arm
    torch.testing.assert_close(scores.log_softmax(-1), guided.log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(safe_divergence(scores, safe), guided.divergence, atol=1e-4, rtol=1e-4)
    backbone = torch.randn(50, V, generator=generator)  # an ARM on a model of its own refers to that
    guided = guided_distribution(safe, arm, plain(50, weight=weight), form, reference_logits=backbone)
    scores = mixture.safe * safe + mixture.arm * arm + mixture.reference * backbone
    torch.testing.assert_close(scores.log_softmax(-1), guided.log_probs, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@given(st.lists(st.tuples(LOGITS, ARM_LOGITS, REQUEST, st.floats(0, 1, exclude_max=True)), min_size=1, max_size=5))
@settings(deadline=None, max_examples=150)
def test_every_token_is_in_the_safe_set_and_batched_equals_solo(rows):
    safe, arm = (torch.tensor([row[i] for row in rows]) for i in (0, 1))
    requests = [row[2] for row in rows]
    uniforms = torch.tensor([row[3] for row in rows], dtype=torch.float64)
    for form in FORMS:
        guided, tokens = decide(safe, arm, make_parameters(*requests), uniforms, form)
        allowed = inside(safe.log_softmax(-1), make_parameters(*requests).deltas)
        assert allowed.gather(-1, tokens[:, None]).all()
        assert not guided.log_probs.isnan().any()
        assert (guided.of(tokens)[1] > -math.inf).all()
        assert (guided.divergence >= 0).all()
        for i, request in enumerate(requests):
            one = slice(i, i + 1)
            alone, token = decide(safe[one], arm[one], make_parameters(request), uniforms[one], form)
            assert torch.equal(tokens[one], token)
            for together, solo in zip(guided, alone, strict=True):
                torch.testing.assert_close(together[one], solo, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_hostile_arm_stays_in_the_safe_set_for_10_000_steps(form):
    generator = torch.Generator().manual_seed(0)
    n, harm = 10_000, 0
    safe = 2 * torch.randn(n, V, generator=generator)
    safe[:, harm] = safe[:, 1:].amax(-1) - 3.5  # the safe model holds harm 3.5 nats below its favourite
    arm = torch.randn(n, V, generator=generator)
    arm[:, harm] = 50.0
    uniforms = torch.rand(n, generator=generator, dtype=torch.float64)
    for strict in (False, True):
        guided, tokens = decide(safe, arm, plain(n, weight=32.0, delta=3.0, strict=strict), uniforms, form)
        assert inside(safe.log_softmax(-1), torch.full((n,), 3.0)).gather(-1, tokens[:, None]).all()
        assert not (tokens == harm).any()
        assert guided.rejected.all()
    guided, tokens = decide(safe, arm, plain(n, weight=32.0), uniforms, form)
    assert (tokens == harm).all()
    assert not guided.rejected.any()


@pytest.mark.parametrize("form", sorted(FORMS))
def test_strict_is_the_limit_of_large_weights(form):
    generator = torch.Generator().manual_seed(1)
    safe, arm = torch.randn(200, V, generator=generator), torch.randn(200, V, generator=generator)
    uniforms = torch.rand(200, generator=generator, dtype=torch.float64)
    log_safe, log_arm = safe.log_softmax(-1), arm.log_softmax(-1)
    q = FORMS[form](log_arm, log_safe).masked_fill(~inside(log_safe, torch.full((200,), 1.0)), -math.inf)
    guided, tokens = decide(safe, arm, plain(200, weight=0.1, delta=1.0, strict=True), uniforms, form)
    assert torch.equal(tokens, q.argmax(-1))
    assert (guided.of(tokens)[0] == 0).all()
    torch.testing.assert_close(guided.divergence, -guided.of(tokens)[1])
    limit = decide(safe, arm, plain(200, weight=1e6, delta=1.0, temperature=0.0), uniforms, form)[1]
    assert torch.equal(tokens, limit)
    base = decide(safe, arm, plain(200, weight=0.0, delta=1.0, strict=True), uniforms, form)[0]
    expected = log_safe.masked_fill(~inside(log_safe, torch.ones(200)), -math.inf).log_softmax(-1)
    torch.testing.assert_close(base.log_probs, expected)


def test_a_bias_moves_tokens_of_its_row_and_opens_no_safe_set():
    safe = torch.tensor([[2.0, 1.0, 0.5, -4.0]] * 3)
    bias = LogitBias(torch.tensor([0, 0, 2]), torch.tensor([1, 3, 3]), torch.tensor([3.0, 100.0, 100.0]))
    for form in FORMS:
        parameters = plain(3, weight=1.0, delta=2.0)._replace(deltas=torch.tensor([2.0, 2.0, math.inf]), bias=bias)
        plainly = guided_distribution(safe, safe, parameters._replace(bias=None), form).log_probs
        guided = guided_distribution(safe, safe, parameters, form)
        expected = (plainly + torch.tensor([[0, 3.0, 0, 100], [0] * 4, [0, 0, 0, 100]])).log_softmax(-1)
        torch.testing.assert_close(guided.log_probs, expected)
        assert guided.log_probs[0, 3] == -math.inf
        assert guided.rejected.tolist() == [True, False, False]
        strict = plain(3, weight=1.0, delta=2.0, strict=True)._replace(bias=bias)
        assert decide(safe, safe + torch.tensor([0, 0, 0.1, 0]), strict, torch.zeros(3), form)[1][0] == 1


@pytest.mark.trap(1)
def test_weight_zero_is_the_base_bit_for_bit_beside_infinities():
    safe = torch.tensor([[1.0, 2.0, -math.inf, 0.5]])
    arm = torch.tensor([[-math.inf, math.nan, 3.0, -math.inf]])
    for form in FORMS:
        guided = guided_distribution(safe, arm, plain(), form)
        assert torch.equal(guided.log_probs, safe.log_softmax(-1))
        assert guided.divergence.item() == 0
        assert torch.equal(guided.arm_logits, guided.log_safe)


def test_without_arm_mass_in_the_safe_set_the_base_decides():
    safe, arm = torch.tensor([[2.0, 1.0, -9.0]]), torch.tensor([[-math.inf, -math.inf, 0.0]])
    for form in FORMS:
        guided = guided_distribution(safe, arm, plain(weight=1.0, delta=3.0), form)
        torch.testing.assert_close(guided.log_probs[0, :2], safe[0, :2].log_softmax(-1))
        assert guided.log_probs[0, 2] == -math.inf
        strict = decide(safe, arm, plain(weight=1.0, delta=3.0, strict=True), torch.tensor([0.0]), form)
        assert strict[1].item() == 0
        bias = LogitBias(torch.tensor([0]), torch.tensor([1]), torch.tensor([5.0]))  # what the client wishes for stays
        for mode in (False, True):
            parameters = plain(weight=1.0, delta=3.0, strict=mode, temperature=0.0)._replace(bias=bias)
            assert decide(safe, arm, parameters, torch.tensor([0.0]), form)[1].item() == 1


def test_logits_are_cast_to_float32_before_the_softmax():
    logits = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    guided = guided_distribution(logits, logits, plain(2, weight=1.0), "sum")
    assert guided.log_probs.dtype == torch.float32
    expected = (2 * logits.double().log_softmax(-1)).log_softmax(-1)
    torch.testing.assert_close(guided.log_probs.double(), expected, atol=1e-5, rtol=0)


def test_temperature_zero_takes_the_most_probable_guided_token():
    safe, arm = torch.tensor([[1.0, 0.9, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    greedy = plain(weight=1.0, temperature=0.0)
    assert decide(safe, arm, greedy, torch.tensor([0.999]), "sum")[1].item() == 1


@pytest.mark.trap(2)
def test_temperature_acts_on_the_product_itself():
    safe, arm = torch.randn(1, V), torch.randn(1, V)
    params = plain(20_000, weight=2.0, temperature=0.5)
    uniforms = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    tokens = decide(safe.expand(20_000, -1), arm.expand(20_000, -1), params, uniforms, "sum")[1]
    expected = ((safe.log_softmax(-1) + 2 * arm.log_softmax(-1)) / 0.5).softmax(-1)[0]
    shares = torch.bincount(tokens, minlength=V) / 20_000
    torch.testing.assert_close(shares, expected, atol=1e-3, rtol=0)
