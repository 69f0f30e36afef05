"""Conflict methods: known 2-D cases, numpy oracles written from the papers, and what each one guarantees."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.algorithms.conflict_methods import METHODS, align_gram
from armature.algorithms.gradient_surgery import combine_gradients, cosine_matrix, gram_matrix, resolve_conflicts


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


def shortest_by_enumeration(gradients: np.ndarray) -> np.ndarray:
    """MGDA's G^T w: the best over all supports of the point of their affine hull that is nearest to the origin."""
    count, best = len(gradients), None
    for size in range(1, count + 1):
        for support in map(list, combinations(range(count), size)):
            first, rest = gradients[support[0]], gradients[support[1:]] - gradients[support[0]]
            steps = np.linalg.lstsq(rest.T, -first, rcond=None)[0] if size > 1 else np.zeros(0)
            if (steps >= 0).all() and steps.sum() <= 1:
                point = first + steps @ rest
                best = point if best is None or point @ point < best @ best else best
    assert best is not None
    return best


def cagrad_oracle(gradients: np.ndarray) -> np.ndarray:
    """CAGrad's d by exponentiated gradient descent on its dual, then its rescaling and its sum over objectives."""
    count = len(gradients)
    mean = gradients.mean(0)
    radius, weights = 0.5 * np.linalg.norm(mean), np.full(count, 1 / count)
    scale = 0.2 / (gradients**2).sum(1).max()
    for _ in range(20_000):
        combined = weights @ gradients
        slope = gradients @ (mean + radius * combined / (np.linalg.norm(combined) + 1e-15))
        weights *= np.exp(-scale * (slope - slope.min()))
        weights /= weights.sum()
    combined = weights @ gradients
    return count * (mean + radius * combined / np.linalg.norm(combined)) / 1.25


@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_mgda_is_the_shortest_vector_of_the_hull_and_descends_for_all(objectives, size, seed):
    gradients = random_gradients(objectives, size, seed)
    found = update("mgda", gradients)
    np.testing.assert_allclose(found, objectives * shortest_by_enumeration(gradients.numpy()), atol=1e-6)
    assert (gradients @ found >= found @ found / objectives - 1e-6).all()


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=50)
def test_mgda_of_two_objectives_has_a_closed_form(seed):
    first, second = random_gradients(2, 4, seed)
    weight = ((second - first) @ second / (first - second).square().sum()).clamp(0, 1)
    torch.testing.assert_close(
        update("mgda", torch.stack([first, second])), 2 * (weight * first + (1 - weight) * second)
    )


@pytest.mark.parametrize("seed", range(5))
def test_cagrad_equals_descent_on_its_dual(seed):
    gradients = random_gradients(2 + seed % 3, 6, seed)
    np.testing.assert_allclose(update("cagrad", gradients), cagrad_oracle(gradients.numpy()), atol=2e-3)


@given(st.integers(2, 6), st.integers(2, 8), st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_cagrad_stays_near_the_mean_and_serves_the_worst_off_better(objectives, size, seed):
    gradients = random_gradients(objectives, size, seed)
    mean = gradients.mean(0)
    direction = update("cagrad", gradients) * 1.25 / objectives
    assert (direction - mean).norm() <= 0.5 * mean.norm() * (1 + 1e-6)
    assert (gradients @ direction).min() >= (gradients @ mean).min() - 1e-6 * gradients.norm() ** 2


@given(st.sampled_from(sorted(METHODS)), st.integers(2, 5), st.floats(1e-4, 1e4), st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_the_update_scales_with_the_gradients(method, objectives, scale, seed):
    gradients = random_gradients(objectives, 6, seed)
    expected = scale * update(method, gradients, seed)
    tolerance = 1e-5 * scale * float(gradients.norm())
    torch.testing.assert_close(update(method, scale * gradients, seed), expected, atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_opposite_gradients_give_no_direction_that_harms(method):
    g = random_gradients(1, 6, 4)
    found = update(method, torch.cat([g, 2 * g, 3 * g]))[None]
    torch.testing.assert_close(found / found.norm(), g / g.norm())
    opposite = update(method, torch.cat([g, -g]))
    assert opposite.norm() <= 1e-5 * g.norm()


def test_known_cases_in_two_dimensions():
    conflicting = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    # g1 - (-1/2) g2 = (.5, .5);  g2 - (-1) g1 = (0, 1)
    expected = torch.tensor([0.5, 1.5], dtype=torch.float64)
    torch.testing.assert_close(update("pcgrad", conflicting), expected)
    torch.testing.assert_close(update("upgrad", conflicting), expected, atol=1e-5, rtol=0)
    agreeing = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(update("mgda", agreeing), torch.tensor([2.0, 0.0], dtype=torch.float64))
    for method in ("sum", "pcgrad", "upgrad"):
        torch.testing.assert_close(update(method, agreeing), agreeing.sum(0))


@pytest.mark.trap(13)
def test_opposite_gradients_of_a_single_pair_cancel():
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
    grams = {group: gram_matrix(tensors) for group, tensors in groups.items()}
    shared = resolve_conflicts(grams, "upgrad", "shared", generator())
    torch.testing.assert_close(shared["shared"], METHODS["upgrad"](grams["shared"], generator()))
    assert shared["conditioned"].tolist() == [1, 1, 1]
    both = resolve_conflicts(grams, "upgrad", "all", generator())
    stacked = gram_matrix([*groups["shared"], *groups["conditioned"]])
    for group in groups:
        torch.testing.assert_close(both[group], METHODS["upgrad"](stacked, generator()))


def test_cosines_are_those_of_the_vectors():
    gradients = random_gradients(3, 7, 2)
    unit = gradients / gradients.norm(dim=1, keepdim=True)
    torch.testing.assert_close(cosine_matrix(gram_matrix([gradients[:, :3], gradients[:, 3:]])), unit @ unit.T)


def test_combining_keeps_shape_and_dtype():
    gradient = torch.randn(3, 2, 4)
    combined = combine_gradients(gradient, torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    assert combined.dtype == torch.float32
    torch.testing.assert_close(combined, gradient[0] + 2 * gradient[1])
