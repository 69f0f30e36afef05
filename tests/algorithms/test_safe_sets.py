"""The safe set as a mask, against its definition, and the delta from which it lets an answer through."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from armature.algorithms.safe_sets import critical_gaps, safe_set

LOGIT = st.floats(-(2.0**100), 0, width=32) | st.sampled_from([0.0, -0.0, -1.0, -1.0000001, -1e-38, -math.inf])


@given(st.lists(LOGIT, min_size=2, max_size=8).filter(lambda row: max(row) > -math.inf), st.floats(0, 50, width=32))
def test_the_mask_is_the_definition_and_nothing_in_between(row: list[float], delta: float) -> None:
    # Of log-probabilities only the favourite's comes near 0; below -0.5 floats lie far enough apart for the mask.
    log_safe = torch.tensor([[-0.1, *(min(value, -0.5) for value in row)]])
    mask = safe_set(log_safe, torch.tensor([delta]))
    assert mask is not None
    inside = log_safe >= log_safe.amax(-1, keepdim=True) - delta
    assert torch.equal(mask == 0, inside)
    assert torch.equal(mask == -math.inf, ~inside)


def test_without_a_delta_every_token_is_inside() -> None:
    log_safe = torch.tensor([[0.0, -3.0, -200.0]]).log_softmax(-1)
    assert safe_set(log_safe, torch.tensor([math.inf])) is None
    mask = safe_set(log_safe.expand(2, -1), torch.tensor([math.inf, 1.0]))
    assert mask is not None
    assert mask.tolist() == [[0, 0, 0], [0, -math.inf, -math.inf]]


def test_the_critical_gap_is_the_delta_that_admits_an_answer() -> None:
    logits = torch.randn(4, 6, 9, generator=torch.Generator().manual_seed(0)) * 3
    ids = torch.randint(0, 9, (4, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[False, False, True, True, True, False]] * 4)
    gaps = critical_gaps(logits, ids, mask)
    for row, gap in enumerate(gaps.tolist()):
        for delta, passes in ((gap + 1e-4, True), (gap - 1e-4, False)):
            log_probs = logits[row, 1:4].log_softmax(-1)
            safe = log_probs >= log_probs.amax(-1, keepdim=True) - delta
            assert bool(safe.gather(-1, ids[row, 2:5, None]).all()) is passes
