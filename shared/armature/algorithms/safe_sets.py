"""The safe set: the tokens near the safe model's favourite, outside of which nothing is ever said.

    V_t = {v : log pi_s(v) >= max log pi_s - delta}

The lexicographic order of ProSocialAlign (arXiv 2512.06515) as a guarantee: the set comes from the safe model alone,
before any filter, and guidance chooses inside it.

Symbols: n requests, V vocabulary. A set is an additive mask (n, V): 0 inside, -inf outside. Not a table of booleans: on
a CPU a choice by one takes as long as many sums.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_HUGE = torch.finfo(torch.float32).max


def safe_set(log_safe: Tensor, deltas: Tensor) -> Tensor | None:
    """The set of each row, from log pi_s (n, V) and delta >= 0 (n,). None: everything is inside.

    It holds the argmax of pi_s; a token that pi_s excludes may be in it where delta is infinite, or not.
    """
    if (deltas == math.inf).all():
        return None
    floor = (log_safe.amax(-1, keepdim=True) - deltas[:, None]).clamp(min=-_HUGE)
    # A token below the floor is so by at least the spacing of float32; twice a huge number makes -inf of that.
    return (log_safe - floor).clamp_(max=0).mul_(_HUGE).mul_(_HUGE)


def restrict(wished: Tensor, unsteered: Tensor, outside: Tensor | None) -> tuple[Tensor, Tensor]:
    """The scores on the safe set, -inf outside; and each row's best, (n,).

    The mask comes from pi_s alone, before any filter. Where the ARM gives every safe token probability 0, what is
    wished for without it decides: log pi_s, with a client's bias.
    """
    scores = wished if outside is None else wished + outside
    best = scores.amax(-1)
    if (silenced := best == -math.inf).any():
        scores = torch.where(silenced[:, None], unsteered if outside is None else unsteered + outside, scores)
    return scores, best


def favourite(liked: Tensor, unsteered: Tensor, outside: Tensor | None) -> Tensor:
    """All probability on the safe set's token with the largest ``q``: log-probabilities 0 there, -inf elsewhere.

    A ``q`` that is no number, or infinite, is not liked.
    """
    possible = liked.isfinite() & (unsteered > -math.inf)
    best = restrict(torch.where(possible, liked, -math.inf), unsteered, outside)[0].argmax(-1, keepdim=True)
    return torch.full_like(unsteered, -math.inf).scatter(-1, best, 0.0)


def critical_gaps(logits: Tensor, token_ids: Tensor, answer_mask: Tensor) -> Tensor:
    """The delta from which the safe set lets each given answer through: ``max_t [max log pi_s - log pi_s(y_t)]``.

    Below it the answer can not be emitted, whatever the ARM, the preference, the weight or the seed.

    Args:
        logits: Of the safe model, (rows, T, V).
        token_ids: (rows, T); the token at t is predicted by the logits at t - 1.
        answer_mask: (rows, T) bool: which tokens belong to the answer.

    Returns:
        (rows,), in nats.
    """
    predicted, targets = logits[:, :-1].float(), token_ids[:, 1:]
    gaps = predicted.amax(-1) - predicted.gather(-1, targets[..., None])[..., 0]
    return gaps.masked_fill(~answer_mask[:, 1:], 0.0).amax(-1)
