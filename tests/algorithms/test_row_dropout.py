"""Dropout by coordinates: the right share, the right scale, and nothing but the coordinates decides."""

import pytest
import torch

from armature.algorithms.row_dropout import drop_entries, keep_mask

SEEDS = torch.tensor([0, 1, 2**62 + 12345, -7])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_the_share_is_the_rate_in_every_row_and_the_mean_stays(rate):
    x = torch.ones(4, 64, 256)
    dropped = drop_entries(x, rate, SEEDS, 3)
    share = (dropped == 0).float().mean((1, 2))
    torch.testing.assert_close(share, torch.full((4,), rate), atol=0.015, rtol=0)
    assert set(dropped.unique().tolist()) <= {0.0, float(torch.ones(()) / (1 - rate))}


def test_rows_layers_tokens_and_features_draw_apart():
    mask = keep_mask(SEEDS, 1, 64, 64, 0.5).float() - 0.5
    other = keep_mask(SEEDS, 2, 64, 64, 0.5).float() - 0.5
    for a, b in (
        (mask[0], mask[1]),
        (mask, other),
        (mask[:, 1:], mask[:, :-1]),
        (mask[..., 1:], mask[..., :-1]),
        (mask[:, 1:, 1:], mask[:, :-1, :-1]),
        (mask[:, 1:, :-1], mask[:, :-1, 1:]),
    ):
        assert (a * b).mean().abs() < 0.02  # uncorrelated: 1/4 if they were alike


def test_neither_the_batch_nor_the_padding_matters():
    whole = keep_mask(SEEDS, 9, 20, 16, 0.3)
    assert torch.equal(keep_mask(SEEDS[2:3], 9, 7, 16, 0.3), whole[2:3, :7])


def test_gradients_pass_where_entries_stay():
    x = torch.ones(2, 3, 4, requires_grad=True)
    drop_entries(x, 0.5, SEEDS[:2], 0).sum().backward()
    assert torch.equal(x.grad, 2.0 * keep_mask(SEEDS[:2], 0, 3, 4, 0.5))
