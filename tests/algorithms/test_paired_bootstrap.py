"""The rise of a total against numpy, and what pairing is for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.algorithms.paired_bootstrap import mean_rise, relative_rise

NATS = st.lists(st.floats(0.1, 50), min_size=2, max_size=30)


def test_the_interval_is_the_percentiles_of_redrawn_prompts():
    """An oracle with draws of its own: the ends agree within what 2000 draws leave open."""
    rng = np.random.default_rng(0)
    before = rng.gamma(3, 5, 80)
    after = before * rng.normal(1.03, 0.05, 80)
    rows = rng.integers(0, 80, (20_000, 80))
    low, high = np.quantile(after[rows].sum(1) / before[rows].sum(1) - 1, [0.025, 0.975])
    got = relative_rise(before.tolist(), after.tolist(), seed=1)
    assert got.value == pytest.approx(after.sum() / before.sum() - 1)
    assert (got.low, got.high) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


@given(NATS, st.floats(0.5, 2))
@settings(deadline=None, max_examples=20)
def test_a_change_that_is_the_same_for_every_prompt_has_no_spread(before, factor):
    rise = relative_rise(before, [factor * nats for nats in before], seed=0, draws=50)
    assert (rise.value, rise.low, rise.high) == (pytest.approx(factor - 1, abs=1e-12),) * 3


def test_the_same_seed_draws_the_same_prompts():
    before = [1.0 + nats / 7 for nats in range(40)]
    after = [nats + (row % 7) / 10 for row, nats in enumerate(before)]
    assert relative_rise(before, after, 3) == relative_rise(before, after, 3) != relative_rise(before, after, 4)


def test_a_share_rises_by_the_prompts_that_changed():
    before, after = [False] * 90 + [True] * 10, [False] * 84 + [True] * 16
    got = mean_rise(before, after, seed=2)
    spread = 1.96 * (0.06 * 0.94 / 100) ** 0.5
    assert got.value == pytest.approx(0.06)
    assert (got.low, got.high) == (pytest.approx(0.06 - spread, abs=0.015), pytest.approx(0.06 + spread, abs=0.015))
    assert mean_rise(before, before, seed=2).high == 0.0


@pytest.mark.parametrize(("before", "after"), [([], []), ([True], [])])
def test_a_rise_of_a_share_needs_pairs(before, after):
    with pytest.raises(ValueError, match="no pairs"):
        mean_rise(before, after, seed=0)


@pytest.mark.parametrize(
    ("before", "after"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([-1.0, 3.0], [1.0, 1.0])]
)
def test_what_is_no_pair_is_refused(before, after):
    with pytest.raises(ValueError, match=r"pairs|above zero"):
        relative_rise(before, after, 0)
