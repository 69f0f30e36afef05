"""Active sets, by the conditions that a solution must meet and by trying every support."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.algorithms.quadratic_programs import minimise_on_orthant, minimise_on_simplex

SIZES, SEEDS = st.integers(1, 7), st.integers(0, 10_000)


def random_program(count: int, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A Gram matrix, singular if ``rank`` < ``count``, and a linear term in its range."""
    g = torch.Generator().manual_seed(seed)
    gradients = torch.randn(count, rank, generator=g, dtype=torch.float64)
    return gradients @ gradients.T / rank, gradients @ torch.randn(rank, generator=g, dtype=torch.float64) / rank


@given(SIZES, st.integers(1, 7), SEEDS)
@settings(deadline=None, max_examples=200)
def test_simplex_solutions_meet_the_kkt_conditions(count, rank, seed):
    gram, linear = random_program(count, rank, seed)
    w = minimise_on_simplex(gram, linear)
    assert w.sum().item() == pytest.approx(1, abs=1e-8)
    assert (w >= 0).all()
    slope = gram @ w + linear
    level = w @ slope
    assert (slope >= level - 1e-7).all()
    assert (w * (slope - level)).abs().max() <= 1e-7


@given(SIZES, SEEDS)
@settings(deadline=None, max_examples=100)
def test_orthant_solutions_meet_the_kkt_conditions(count, seed):
    gram, linear = random_program(count, count + 2, seed)
    z = minimise_on_orthant(gram, linear)
    slope = gram @ z + linear
    assert (z >= 0).all()
    assert (slope >= -1e-7).all()
    assert (z * slope).abs().max() <= 1e-6


def best_by_enumeration(gram: np.ndarray, linear: np.ndarray) -> float:
    """The least objective over all supports whose stationary point lies on the simplex."""
    count, values = len(gram), []
    for size in range(1, count + 1):
        for support in map(list, combinations(range(count), size)):
            system = np.ones((size + 1, size + 1))
            system[:size, :size], system[size, size] = gram[np.ix_(support, support)], 0
            point = np.linalg.lstsq(system, np.append(-linear[support], 1), rcond=None)[0][:size]
            if (point >= -1e-12).all():
                values.append(point @ gram[np.ix_(support, support)] @ point / 2 + linear[support] @ point)
    return min(values)


@pytest.mark.parametrize("seed", range(10))
def test_simplex_solutions_are_the_best_of_all_supports(seed):
    gram, linear = random_program(4, 6, seed)
    w = minimise_on_simplex(gram, linear)
    assert float(w @ gram @ w / 2 + linear @ w) == pytest.approx(best_by_enumeration(gram.numpy(), linear.numpy()))


def test_many_entries_are_no_obstacle():
    gram, linear = random_program(64, 80, 0)
    w = minimise_on_simplex(gram, 0 * linear)
    assert (gram @ w >= w @ gram @ w - 1e-9).all()
