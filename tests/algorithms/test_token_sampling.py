"""Filters and draws: against their definition, token by token."""

import math

import numpy as np
import pytest
import torch

from armature.algorithms.token_sampling import filter_tokens, invert_cdf


def filtered(scores: torch.Tensor, **request: float) -> torch.Tensor:
    parameters = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, **request}
    return filter_tokens(scores, *(torch.tensor([value]).expand(len(scores)) for value in parameters.values()))


def kept_by_definition(scores: np.ndarray, top_k: int, top_p: float) -> set[int]:
    """Token by token, best first, equals by id."""
    order = sorted(range(len(scores)), key=lambda id: (-scores[id], id))
    order = [id for id in order[: top_k or None] if scores[id] > -math.inf]
    masses = np.exp(scores[order].astype(np.float64))
    before = np.concatenate([[0], masses.cumsum()[:-1]]) / masses.sum()
    if np.abs(before - top_p).min() < 1e-5:
        return set()  # float32 may decide otherwise
    return {id for id, mass in zip(order, before, strict=True) if mass < top_p}


def test_filters_act_in_order_after_the_combination():
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    cases = [
        ({"top_k": 2}, [0, 1]),
        ({"top_p": 0.6}, [0, 1]),
        ({"top_p": 0.5}, [0]),
        ({"min_p": 0.3}, [0, 1, 2]),
        ({"top_k": 3, "top_p": 0.8}, [0, 1]),  # within the top 3, 0.5/0.95 + 0.3/0.95 = 0.84 covers 0.8
        ({"top_p": 0.8, "min_p": 0.7}, [0]),
        ({"top_k": 9, "top_p": 1.0}, [0, 1, 2, 3]),
    ]
    for request, kept in cases:
        out = filtered(scores, **request)
        assert (out[0] > -math.inf).nonzero().flatten().tolist() == kept, request


def test_top_k_is_exact_among_equals():
    out = filtered(torch.zeros(1, 5), top_k=2)
    assert (out[0] > -math.inf).nonzero().flatten().tolist() == [0, 1]


@pytest.mark.parametrize("levels", [3, 40, 10_000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
def test_filters_match_their_definition_among_ties(levels: int, spread: float) -> None:
    draw = np.random.default_rng(levels)
    decided = 0
    for top_k, top_p in [
        (0, 0.1),
        (0, 0.9),
        (0, 0.999),
        (1, 1.0),
        (50, 1.0),
        (50, 0.7),
        (600, 0.95),
        (255, 1.0),
        (256, 1.0),
    ]:
        scores = (draw.integers(0, levels, (4, 700)) / levels * 3 * spread).astype(np.float32)
        scores[1, draw.permutation(700)[:500]] = -math.inf  # as outside of a safe set
        scores[2, 5:] = -math.inf
        out = filtered(torch.from_numpy(scores), top_k=top_k, top_p=top_p).numpy()
        for row, result in zip(scores, out, strict=True):
            if expected := kept_by_definition(row, top_k, top_p):
                decided += 1
                assert set(np.flatnonzero(result > -math.inf).tolist()) == expected
                assert all(result[id] == row[id] for id in expected)
    assert decided > 20


@pytest.mark.parametrize("u", [0.0, 0.25, 0.5, 1 - 2**-53])
def test_impossible_tokens_are_never_drawn(u):
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.25, 0.5, 0.0]])
    token = invert_cdf(probabilities, torch.tensor([u], dtype=torch.float64)).item()
    assert probabilities[0, token] > 0
    assert token == {0.0: 1, 0.25: 3, 0.5: 4}.get(u, 4)
