"""Steering by an instruction: against plain numpy written from the paper, and its corner cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.algorithms.instruction_steering import (
    Steering,
    adapt_temperatures,
    amplification,
    divergence,
    steer,
)

V = 6
ROW = st.lists(st.floats(-6, 6, width=32), min_size=V, max_size=V)
LN2 = math.log(2)


def log_softmax(row: list[float]) -> np.ndarray:
    values = np.array(row, dtype=np.float64)
    return values - np.log(np.exp(values).sum())


def tensor(row: list[float]) -> torch.Tensor:
    return torch.tensor([row]).log_softmax(-1)


def temperature(t0: float, js: float, sigma: float, floor: float, strength: float = 2.0) -> float:
    steering = Steering(*(torch.tensor([value]) for value in (strength, sigma, floor)))
    return adapt_temperatures(torch.tensor([t0]), torch.tensor([js]), steering).item()


def disjoint() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[0.5, 0.5, 0.0, 0.0]]).log(), torch.tensor([[0.0, 0.0, 0.25, 0.75]]).log()


@pytest.mark.parametrize(("score", "a"), [(100, 0.0), (75, 0.165), (50, 0.462), (25, 0.905), (10, 0.99975)])
def test_eq_3_amplifies_what_scores_badly(score: float, a: float) -> None:
    assert amplification(score) == pytest.approx(a, abs=1e-3)


@given(ROW, ROW, st.sampled_from([0.5, 2.0, 5.0]), st.sampled_from([0.0, 0.165, 1.0]))
@settings(deadline=None)
def test_eq_5_equals_plain_numpy(plain: list[float], instructed: list[float], kappa: float, a: float) -> None:
    log_1, log_2 = log_softmax(plain), log_softmax(instructed)
    wanted = log_2 + kappa * a * (log_2 - log_1)
    steered = steer(tensor(plain), tensor(instructed), torch.tensor([1 + kappa * a]))
    np.testing.assert_allclose(steered[0].double().numpy(), wanted, atol=2e-4)


@given(ROW, ROW)
@settings(deadline=None)
def test_strength_0_is_the_prompt_and_1_the_instruction_bit_for_bit(plain: list[float], below: list[float]) -> None:
    log_1, log_2 = tensor(plain), tensor(below)
    assert torch.equal(steer(log_1, log_2, torch.tensor([0.0])), log_1)
    assert torch.equal(steer(log_1, log_2, torch.tensor([1.0])), log_2)
    assert torch.equal(steer(log_1, torch.full_like(log_1, math.nan), torch.tensor([0.0])), log_1)


@given(ROW, ROW)
@settings(deadline=None)
def test_the_divergence_equals_plain_numpy(first: list[float], second: list[float]) -> None:
    log_1, log_2 = log_softmax(first), log_softmax(second)
    log_mean = np.log((np.exp(log_1) + np.exp(log_2)) / 2)
    wanted = (np.exp(log_1) * (log_1 - log_mean)).sum() / 2 + (np.exp(log_2) * (log_2 - log_mean)).sum() / 2
    found = divergence(tensor(first), tensor(second)).item()
    assert found == pytest.approx(wanted, abs=1e-5)
    assert 0 <= found <= LN2


@given(st.lists(st.tuples(ROW, ROW, st.sampled_from([0.0, 0.7, 1.0, 3.0])), min_size=1, max_size=5))
@settings(deadline=None)
def test_a_request_does_not_depend_on_its_neighbours(rows: list[tuple[list[float], list[float], float]]) -> None:
    log_1, log_2 = (torch.tensor([row[i] for row in rows]).log_softmax(-1) for i in (0, 1))
    strengths = torch.tensor([row[2] for row in rows])
    together = steer(log_1, log_2, strengths), divergence(log_1, log_2)
    for i in range(len(rows)):
        one = slice(i, i + 1)
        assert torch.equal(together[0][one], steer(log_1[one], log_2[one], strengths[one]))
        assert torch.equal(together[1][one], divergence(log_1[one], log_2[one]))


def test_what_either_excludes_stays_excluded() -> None:
    log_1, log_2 = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.0, 0.4, 0.6]]).log()
    assert steer(log_1, log_2, torch.tensor([3.0])).isinf().tolist() == [[True, False, True]]
    assert not steer(*disjoint(), torch.tensor([3.0])).isnan().any()


def test_eq_6_cools_by_the_divergence() -> None:
    assert divergence(*disjoint()).item() == pytest.approx(LN2)
    assert temperature(0.6, 0.0, 0.01, 0.2) == pytest.approx(0.6)
    assert temperature(0.6, LN2, 2 * LN2, 0.0) == pytest.approx(0.6 * 0.5**0.5)
    assert temperature(0.6, LN2, 0.01, 0.2) == pytest.approx(0.2)
    assert temperature(0.6, 0.01, 0.01, 0.2) == pytest.approx(0.3)


def test_no_temperature_rises_and_without_steering_it_stays() -> None:
    assert temperature(0.0, LN2, 0.01, 0.2) == 0.0
    assert temperature(0.1, LN2, 0.01, 0.2) == pytest.approx(0.1)
    assert temperature(0.6, LN2, math.inf, 0.0) == pytest.approx(0.6)
    assert temperature(0.6, LN2, 0.01, 0.2, strength=0.0) == pytest.approx(0.6)
