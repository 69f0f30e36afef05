"""Metrics against closed forms and numpy."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.algorithms.metrics import (
    attack_success,
    certified_order,
    control_matrix,
    count_dominant_rows,
    diagonal_dominance,
    mean,
    mean_inner_product,
    mean_nll,
    shuffled_inner_product,
    spearman,
    wilson_rate,
)


def test_wilson_known_values():
    rate = wilson_rate(0, 120)
    assert (rate.value, rate.low) == (0, 0)
    assert rate.high == pytest.approx(3.841459 / (120 + 3.841459), abs=1e-6)
    half = wilson_rate(50, 100)
    assert (half.low, half.high) == pytest.approx((0.403832, 0.596168), abs=1e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_solves_the_score_equation(count, data):
    successes = data.draw(st.integers(0, count))
    rate = wilson_rate(successes, count)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    for bound in (rate.low, rate.high):
        if 0 < bound < 1:
            z = abs(rate.value - bound) / math.sqrt(bound * (1 - bound) / count)
            assert z == pytest.approx(1.959964, rel=1e-4)


@pytest.mark.parametrize(("successes", "count"), [(0, 0), (-1, 5), (6, 5)])
def test_what_is_not_a_share_is_refused(successes, count):
    with pytest.raises(ValueError, match="not a share"):
        wilson_rate(successes, count)


def test_garbled_answers_do_not_count_as_safe():
    asr, asr_star = attack_success([True, False, False, False], [True, True, False, False])
    assert (asr.value, asr_star.value, asr.count) == (0.25, 0.5, 4)


def test_mip_and_its_shuffled_expectation():
    generator = np.random.default_rng(0)
    p, z = generator.dirichlet(np.ones(3), 40), generator.random((40, 3))
    assert mean_inner_product(p.tolist(), z.tolist()) == pytest.approx((p * z).sum(1).mean())
    drawn = [(generator.permutation(p) * z).sum(1).mean() for _ in range(4000)]
    assert shuffled_inner_product(p.tolist(), z.tolist()) == pytest.approx(np.mean(drawn), abs=2e-3)


def test_a_model_blind_to_the_preference_gains_nothing():
    p = [[1, 0], [0, 1], [0.5, 0.5]]
    z = [[0.4, 0.8]] * 3
    assert mean_inner_product(p, z) == pytest.approx(shuffled_inner_product(p, z))


def test_control_matrix_and_dominance():
    one_hot = [[[0.9, 0.1], [0.7, 0.1]], [[0.3, 0.6], [0.3, 0.8]]]
    matrix = control_matrix(one_hot, [[0.4, 0.4], [0.4, 0.2]])
    assert np.allclose(matrix, [[0.4, -0.2], [-0.1, 0.4]])
    assert diagonal_dominance(matrix) == pytest.approx((0.6 + 0.5) / 2)
    assert count_dominant_rows(matrix) == 2
    assert count_dominant_rows([[0.1, 0.1], [0.0, 0.3]]) == 1
    assert diagonal_dominance([[0.3]]) == 0.3


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=30))
@settings(deadline=None)
def test_spearman_is_pearson_of_average_ranks(pairs):
    x, y = (list(map(float, side)) for side in zip(*pairs, strict=True))

    def ranks(values: list[float]) -> np.ndarray:
        a = np.array(values)
        return np.array([(a < v).sum() + ((a == v).sum() + 1) / 2 for v in a])

    a, b = ranks(x), ranks(y)
    expected = 0.0 if a.std() == 0 or b.std() == 0 else np.corrcoef(a, b)[0, 1]
    assert spearman(x, y) == pytest.approx(expected, abs=1e-9)
    assert spearman(x, [math.exp(v) for v in y]) == pytest.approx(expected, abs=1e-9)


def test_spearman_extremes():
    x = random.Random(0).sample(range(100), 20)
    assert spearman(x, x) == pytest.approx(1)
    assert spearman(x, [-v for v in x]) == pytest.approx(-1)
    assert spearman(x, [1.0] * 20) == 0


@pytest.mark.trap(21)
def test_nll_is_divided_by_the_tokens_it_is_summed_over():
    assert mean_nll([10.0, 1.0], [10, 2]) == pytest.approx(11 / 12)
    with pytest.raises(ValueError, match="no tokens"):
        mean_nll([], [])
    with pytest.raises(ValueError, match="mean of nothing"):
        mean([])


@pytest.mark.parametrize(("samples", "risk", "order"), [(58, 0.05, 0), (59, 0.05, 1), (148, 0.02, 0), (149, 0.02, 1)])
def test_a_quantile_is_certified_from_so_many_samples_on(samples: int, risk: float, order: int) -> None:
    assert certified_order(samples, risk) == order


def test_a_certified_value_is_below_the_quantile_as_often_as_promised() -> None:
    draw, samples, risk = random.Random(0), 200, 0.05
    k = certified_order(samples, risk)
    assert k > 1
    missed = sum(sorted(draw.random() for _ in range(samples))[k - 1] > risk for _ in range(2000))
    assert missed / 2000 <= 0.065
