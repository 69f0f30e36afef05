"""Conflict methods: known 2-D cases, numpy oracles written from the papers, and what each one guarantees."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.algorithms.gradient_surgery import (
    METHODS,
    align_gram,
    combine_gradients,
    cosine_matrix,
    gram_matrix,
    resolve_conflicts,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def update(method: str, gradients: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return combine_gradients(gradients, METHODS[method](gram_matrix([gradients]), generator(seed)))


def random_gradients(objectives: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(objectives, size, generator=generator(seed), dtype=torch.float64)


def pcgrad_oracle(gradients: np.ndarray, seed: int) -> np.ndarray:
    """Algorithm 1 on the vectors themselves; only the random orders are shared."""
    draws, total = generator(seed), np.zeros(gradients.shape[1])
    for i, gradient in enumerate(gradients):
        g = gradient.copy()
        for j in torch.randperm(len(gradients), generator=draws).tolist():
            if j != i and g @ gradients[j] < 0:
                g -= (g @ gradients[j]) / (gradients[j] @ gradients[j]) * gradients[j]
        total += g
    return total


def aligned_oracle(gradients: np.ndarray) -> np.ndarray:
    """Through the singular value decomposition of G: all singular values become the smallest one."""
    u, s, vt = np.linalg.svd(gradients, full_matrices=False)
    return np.ones(len(gradients)) @ (u * s.min()) @ vt


def upgrad_oracle(gradients: np.ndarray) -> np.ndarray:
    """Each g_i projected on the cone {d : G d >= 0}, by Dykstra's alternating projections; then summed."""
    total = np.zeros(gradients.shape[1])
    for gradient in gradients:
        x, memory = gradient.copy(), np.zeros_like(gradients)
        for _ in range(4000):
            for j, g in enumerate(gradients):
                y = x + memory[j]
                x = y - min(0.0, (y @ g) / (g @ g)) * g
                memory[j] = y - x
        total += x
    return total


@given(st.integers(1, 6), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_pcgrad_equals_the_algorithm_on_vectors(objectives, seed):
    gradients = random_gradients(objectives, 4, seed)
    np.testing.assert_allclose(update("pcgrad", gradients, seed), pcgrad_oracle(gradients.numpy(), seed), atol=1e-9)


@given(st.integers(1, 5), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_aligned_equals_the_svd_form_and_its_gram_has_condition_one(objectives, seed):
    gradients = random_gradients(objectives, 12, seed)
    np.testing.assert_allclose(update("aligned", gradients), aligned_oracle(gradients.numpy()), atol=1e-9)
    gram = gram_matrix([gradients])
    basis = align_gram(gram)
    assert torch.linalg.cond(basis @ gram @ basis).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_upgrad_equals_projections_on_the_dual_cone(seed):
    gradients = random_gradients(3, 5, seed)
    np.testing.assert_allclose(update("upgrad", gradients), upgrad_oracle(gradients.numpy()), atol=1e-4)


def assert_no_conflict(gradients: torch.Tensor) -> None:
    gram = gram_matrix([gradients])
    coefficients = METHODS["upgrad"](gram, generator())
    ridge = 1e-6 * gram.diagonal() * coefficients
    rounding = 1e-9 * gram.diagonal().sqrt() * gradients.norm()
    assert (gradients @ combine_gradients(gradients, coefficients) >= -ridge - rounding).all()


@given(st.integers(1, 6), st.integers(2, 8), st.integers(0, 10_000))
@settings(deadline=None, max_examples=200)
def test_upgrad_conflicts_with_no_objective(objectives, size, seed):
    assert_no_conflict(random_gradients(objectives, size, seed))


@pytest.mark.parametrize("noise", [1e-2, 1e-4, 1e-6, 0.0])
def test_upgrad_holds_for_nearly_opposite_gradients_too(noise):
    g = random_gradients(1, 6, 0)
    assert_no_conflict(torch.cat([g, -3 * g + noise * random_gradients(1, 6, 1), random_gradients(1, 6, 2)]))


def test_known_cases_in_two_dimensions():
    conflicting = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    # g1 - (-1/2) g2 = (.5, .5);  g2 - (-1) g1 = (0, 1)
    expected = torch.tensor([0.5, 1.5], dtype=torch.float64)
    torch.testing.assert_close(update("pcgrad", conflicting), expected)
    torch.testing.assert_close(update("upgrad", conflicting), expected, atol=1e-5, rtol=0)
    agreeing = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    for method in ("sum", "pcgrad", "upgrad"):
        torch.testing.assert_close(update(method, agreeing), agreeing.sum(0))


def test_t13_opposite_gradients_of_a_single_pair_cancel_so_conflicts_are_resolved_per_step():
    g = torch.randn(1, 6, dtype=torch.float64)
    assert update("pcgrad", torch.cat([g, -2 * g])).norm() < 1e-12


@pytest.mark.parametrize("method", sorted(METHODS))
def test_an_objective_without_gradient_takes_no_part(method):
    gradients = random_gradients(3, 6, 1)
    silent = torch.cat([gradients, torch.zeros(1, 6, dtype=torch.float64)])
    if method == "pcgrad":  # an extra objective shifts the random orders; two objectives have only one order each
        gradients, silent = gradients[:2], silent[[0, 1, 3]]
    torch.testing.assert_close(update(method, silent), update(method, gradients), atol=1e-8, rtol=1e-8)
    assert not update(method, torch.zeros(3, 4, dtype=torch.float64)).any()


def test_pcgrad_order_is_seeded():
    gradients = random_gradients(4, 3, 3)
    assert torch.equal(update("pcgrad", gradients, 5), update("pcgrad", gradients, 5))
    assert any(not torch.equal(update("pcgrad", gradients, 5), update("pcgrad", gradients, s)) for s in range(6, 12))


def test_scope_shared_leaves_the_conditioned_group_to_the_plain_sum():
    groups = {"shared": [random_gradients(3, 4, 0).view(3, 2, 2)], "conditioned": [random_gradients(3, 5, 1)]}
    shared = resolve_conflicts(groups, "upgrad", "shared", generator())
    torch.testing.assert_close(
        shared.coefficients["shared"], METHODS["upgrad"](gram_matrix(groups["shared"]), generator())
    )
    assert shared.coefficients["conditioned"].tolist() == [1, 1, 1]
    both = resolve_conflicts(groups, "upgrad", "all", generator())
    stacked = gram_matrix([*groups["shared"], *groups["conditioned"]])
    for group in groups:
        torch.testing.assert_close(both.coefficients[group], METHODS["upgrad"](stacked, generator()))


def test_cosines_are_those_of_the_vectors():
    gradients = random_gradients(3, 7, 2)
    unit = gradients / gradients.norm(dim=1, keepdim=True)
    torch.testing.assert_close(cosine_matrix(gram_matrix([gradients[:, :3], gradients[:, 3:]])), unit @ unit.T)


def test_combining_keeps_shape_and_dtype():
    gradient = torch.randn(3, 2, 4)
    combined = combine_gradients(gradient, torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    assert combined.dtype == torch.float32
    torch.testing.assert_close(combined, gradient[0] + 2 * gradient[1])
