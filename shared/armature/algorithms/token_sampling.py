"""From a distribution to one token: temperature, top-k, top-p and min-p, in this order, then one draw.

Symbols: n requests, V vocabulary; every parameter is a tensor (n,), so requests with different ones share a batch.
A token is drawn by inverting the distribution function at one uniform number per request, so a request's neighbours in
the batch do not change what it says.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CANDIDATES = 256
"""Tokens that are looked at before a row is sorted: finding them takes a tenth of the time."""


def apply_temperature(log_probs: Tensor, temperatures: Tensor) -> Tensor:
    """``log p / T`` up to a constant; T = 0 is left to the argmax and passes through. The largest entry becomes 0."""
    positive = torch.where(temperatures > 0, temperatures, 1.0)[:, None]
    return (log_probs - log_probs.amax(-1, keepdim=True)) / positive


def filter_tokens(scores: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Top-k, then top-p on what it left, then min-p; excluded tokens become -inf. One token always stays.

    Equal scores are kept in the order of their ids, so k is exact. Of rows that ask for top-k or top-p the best tokens
    are looked at, and only those rows are sorted whole whose answer is not among them.

    Args:
        scores: Log-probabilities up to a constant, (n, V).
        top_k: Tokens kept (integers); 0: all.
        top_p: Probability mass kept; 1: all.
        min_p: Least probability kept, as a share of the largest; 0: all.
    """
    ranked = ((top_k > 0) | (top_p < 1)).nonzero().flatten()
    if len(ranked):
        kept = _filter_best(scores[ranked], top_k[ranked, None], top_p[ranked, None])
        scores = scores.index_copy(0, ranked, kept)
    if (min_p > 0).any():
        floor = scores.amax(-1, keepdim=True) + min_p[:, None].log()
        scores = torch.where(scores < floor, -math.inf, scores)
    return scores


def invert_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The token where the distribution function, in id order, first exceeds u: (n, V), (n,) -> (n,).

    A token of probability 0 is never drawn: the function does not rise there.
    """
    cdf = probabilities.double().cumsum(-1)
    total = cdf[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(uniforms[:, None].double() * total, below_total)
    return torch.searchsorted(cdf, target, right=True)[:, 0].clamp(max=cdf.shape[-1] - 1)


def _filter_best(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """What is kept ends among the best tokens of nearly every row, and there a score tells it from the rest."""
    best = scores.topk(min(_CANDIDATES, scores.shape[-1])).values
    left = _cut(best, top_k)
    everything = torch.where(top_k > 0, _masses(left).sum(-1, keepdim=True), _masses(scores).sum(-1, keepdim=True))
    kept = _within(left, everything, top_p).sum(-1, keepdim=True)
    last, following = best.gather(-1, kept - 1), best.gather(-1, kept.clamp(max=best.shape[-1] - 1))
    filtered = torch.where(scores < last, -math.inf, scores)
    # Equals on both sides of the end, no end in sight, or more asked for than is looked at.
    unclear = ((following == last) | (top_k > best.shape[-1]))[:, 0].nonzero().flatten()
    if len(unclear):
        filtered[unclear] = _filter_sorted(scores[unclear], top_k[unclear], top_p[unclear])
    return filtered


def _filter_sorted(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    left = _cut(ordered, top_k)
    kept = left.masked_fill(~_within(left, _masses(left).sum(-1, keepdim=True), top_p), -math.inf)
    return torch.empty_like(scores).scatter(-1, order, kept)


def _masses(scores: Tensor) -> Tensor:
    """Probabilities up to a factor: the largest is 1."""
    return (scores - scores.amax(-1, keepdim=True)).exp_()


def _cut(ordered: Tensor, top_k: Tensor) -> Tensor:
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    return ordered.masked_fill((top_k > 0) & (rank >= top_k), -math.inf)


def _within(ordered: Tensor, everything: Tensor, top_p: Tensor) -> Tensor:
    """Whether a token is possible, and the mass of those before it less than top-p of all; the first one always is."""
    mass = _masses(ordered)
    before = mass.cumsum(-1) - mass
    kept = ((before < top_p * everything) | (top_p >= 1)) & (ordered > -math.inf)
    kept[:, 0] = True
    return kept
