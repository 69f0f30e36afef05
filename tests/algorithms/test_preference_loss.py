"""The ARM's loss: forms, masking, weights, and how preferences are drawn."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.algorithms.preference_loss import (
    FORMS,
    attribute_losses,
    compute_rewards,
    mixture_losses,
    pair_margins,
    preference_grid,
    sample_preferences,
    sequence_log_probs,
)


def test_sequence_log_probs_sum_the_answer_tokens_alone():
    logits = torch.randn(2, 5, 7)
    ids = torch.randint(7, (2, 5))
    mask = torch.tensor([[False, False, True, True, False], [False, True, True, True, True]])
    expected = torch.zeros(2)
    log_probs = logits.log_softmax(-1)
    for row in range(2):
        for t in range(1, 5):
            if mask[row, t]:
                expected[row] += log_probs[row, t - 1, ids[row, t]]
    torch.testing.assert_close(sequence_log_probs(logits, ids, mask), expected)


def test_padding_and_its_logits_do_not_matter():
    logits, ids, mask = torch.randn(1, 4, 7), torch.randint(7, (1, 4)), torch.tensor([[False, True, True, False]])
    before = sequence_log_probs(logits, ids, mask)
    logits[:, 2:], ids[:, 3] = math.inf, 0
    assert torch.equal(sequence_log_probs(logits[:, :3], ids[:, :3], mask[:, :3]), before)


def test_half_precision_logits_are_read_in_float32():
    logits = torch.randn(1, 3, 50).bfloat16()
    ids, mask = torch.randint(50, (1, 3)), torch.tensor([[False, True, True]])
    exact = sequence_log_probs(logits.double(), ids, mask)
    assert sequence_log_probs(logits, ids, mask).dtype == torch.float32
    torch.testing.assert_close(sequence_log_probs(logits, ids, mask), exact, atol=1e-5, rtol=0, check_dtype=False)


@pytest.mark.trap(11)
def test_each_loss_form_has_its_reward():
    log_probs, tokens, reference = torch.tensor([-6.0, -2.0]), torch.tensor([3, 2]), torch.tensor([-5.0, -4.0])
    results = {form: compute_rewards(log_probs, tokens, form, reference).tolist() for form in FORMS}
    assert results == {"sum": [-6.0, -2.0], "mean": [-2.0, -1.0], "reference": [-1.0, 2.0]}
    with pytest.raises(ValueError, match="adapter off"):
        compute_rewards(log_probs, tokens, "reference")
    with pytest.raises(ValueError, match="unknown loss form"):
        compute_rewards(log_probs, tokens, "product")


def test_margins_pair_neighbouring_rows():
    assert pair_margins(torch.tensor([1.0, 3.0, 10.0, 4.0])).tolist() == [-2.0, 6.0]


def test_attribute_losses_follow_the_formula_and_ties_count_nothing():
    margins = torch.tensor([0.5, -2.0], requires_grad=True)
    labels = torch.tensor([[1, -1, 0], [0, 1, 0]])
    preferences = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.8, 0.1]])
    betas = torch.tensor([2.0, 1.0, 4.0])
    losses = attribute_losses(margins, labels, preferences, betas)
    for i in range(2):
        for k in range(3):
            s, m = labels[i, k].item(), margins[i].item()
            expected = 3 * preferences[i, k].item() * math.log1p(math.exp(-betas[k].item() * s * m)) if s else 0.0
            assert losses[i, k].item() == pytest.approx(expected, rel=1e-5)
    losses[:, 2].sum().backward()
    assert not margins.grad.any()


def test_large_margins_overflow_nothing():
    margins = torch.tensor([1e6, -1e6], requires_grad=True)
    losses = attribute_losses(margins, torch.ones(2, 1), torch.ones(2, 1), torch.tensor([10.0]))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(margins.grad).all()


@given(
    st.integers(1, 8),
    st.floats(0, 0.6),
    st.floats(0, 0.4),
    st.sampled_from([1e-6, 1e-3, 0.5, 1.0, 100.0]),
    st.integers(0, 100),
)
@settings(deadline=None)
def test_sampled_preferences_lie_on_the_simplex(attributes, vertices, centroid, concentration, seed):
    draw = [
        sample_preferences(40, attributes, vertices, centroid, concentration, torch.Generator().manual_seed(seed))
        for _ in range(2)
    ]
    assert torch.equal(draw[0], draw[1])
    assert (draw[0] >= 0).all()
    torch.testing.assert_close(draw[0].sum(-1), torch.ones(40))


@pytest.mark.trap(9)
def test_vertices_and_centroid_get_their_shares():
    p = sample_preferences(20_000, 5, 0.4, 0.1, 0.5, torch.Generator().manual_seed(0))
    assert (p.amax(-1) == 1).float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert (p == 0.2).all(-1).float().mean().item() == pytest.approx(0.1, abs=0.02)
    corners = p[p.amax(-1) == 1].mean(0)
    torch.testing.assert_close(corners, torch.full((5,), 0.2), atol=0.02, rtol=0)
    # the Dirichlet part: variance of one weight is (1/K)(1 - 1/K) / (K a + 1)
    rest = p[(p.amax(-1) < 1) & ~(p == 0.2).all(-1)]
    assert rest.var(0).mean().item() == pytest.approx(0.2 * 0.8 / (5 * 0.5 + 1), rel=0.05)


def test_the_grid_has_vertices_centroid_and_fixed_draws():
    grid = preference_grid(5, 20, seed=3)
    assert grid.shape == (20, 5)
    assert torch.equal(grid[:5], torch.eye(5))
    assert torch.equal(grid[5], torch.full((5,), 0.2))
    assert torch.equal(grid, preference_grid(5, 20, seed=3))
    assert not torch.equal(grid, preference_grid(5, 20, seed=4))
    torch.testing.assert_close(grid.sum(-1), torch.ones(20))
    assert preference_grid(5, 3, seed=0).shape == (3, 5)


def test_the_mixture_s_loss_follows_the_preference_s_verdict():
    margins = torch.tensor([1.5, -2.0, 3.0, 0.5], requires_grad=True)
    labels = torch.tensor([[1, -1], [1, -1], [0, -1], [1, -1]])
    preferences = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.5, 0.5], [0.5, 0.5]])
    losses = mixture_losses(margins, labels, preferences, 2.0)
    expected = [
        math.log1p(math.exp(-2.0 * verdict * margin)) for verdict, margin in ((0.5, 1.5), (-0.5, -2), (-0.5, 3))
    ]
    torch.testing.assert_close(losses, torch.tensor([*expected, 0.0]))
    (gradient,) = torch.autograd.grad(losses.sum(), margins)
    assert [float(g.sign()) for g in gradient] == [-1.0, 1.0, 1.0, 0.0]
