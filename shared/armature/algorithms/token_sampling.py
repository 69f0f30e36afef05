"""From a distribution to one token: temperature, top-k, top-p and min-p, in this order, then one draw.

Symbols: n requests, V vocabulary; every parameter is a tensor (n,), so requests with different ones share a batch.
A token is drawn by inverting the distribution function at one uniform number per request, so a request's neighbours in
the batch do not change what it says.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def apply_temperature(log_probs: Tensor, temperatures: Tensor) -> Tensor:
    """``log p / T`` up to a constant; T = 0 is left to the argmax and passes through. The largest entry becomes 0."""
    positive = torch.where(temperatures > 0, temperatures, 1.0)[:, None]
    return (log_probs - log_probs.amax(-1, keepdim=True)) / positive


def filter_tokens(scores: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Top-k, then top-p on what it left, then min-p; excluded tokens become -inf. One token always stays.

    Equal scores are kept in the order of their ids, so k is exact. Only rows that ask for top-k or top-p are sorted.

    Args:
        scores: Log-probabilities up to a constant, (n, V).
        top_k: Tokens kept (integers); 0: all.
        top_p: Probability mass kept; 1: all.
        min_p: Least probability kept, as a share of the largest; 0: all.
    """
    ranked = ((top_k > 0) | (top_p < 1)).nonzero().flatten()
    if len(ranked):
        kept = _filter_ranked(scores[ranked], top_k[ranked, None], top_p[ranked, None])
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


def _filter_ranked(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    ordered = ordered.masked_fill((top_k > 0) & (rank >= top_k), -math.inf)
    mass = ordered.softmax(-1)
    before = mass.cumsum(-1) - mass
    ordered = ordered.masked_fill((before >= top_p) & (top_p < 1) & (rank > 0), -math.inf)
    return torch.empty_like(scores).scatter(-1, order, ordered)
