"""Guided decoding: the safe model's next token, steered by an ARM, inside a set that the ARM can not leave.

Papers: ProSocialAlign's GUI-Gen (arXiv 2512.06515, 3.3.2), GenARM (arXiv 2410.08193). Per request and token::

    log pi~ = log pi_s + w q       w = 1/beta; q = log pi_arm - log pi_s  (reference form: the adapter off is pi_s)
                                               q = log pi_arm             (sum and mean forms)
    V_t     = {v : log pi_s(v) >= max log pi_s - delta}                   the safe set; every emitted token is in it

then temperature, top-k, top-p and min-p, in this order, on what the safe set left. All in float32: half-precision
log-probabilities tie and flip greedy choices.

Symbols: n requests, V vocabulary; every parameter is a tensor (n,), so requests with different ones share a batch.

What differs from the papers: the safe set (the lexicographic order as a guarantee, not a tendency); q has the form that
the ARM was trained with; the sum of weights is not divided out, so w does not act as a temperature; and a token is
drawn by inverting the distribution function at one uniform number per request, so a request's neighbours in the batch
do not change what it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reference": lambda log_arm, log_safe: log_arm - log_safe,
    "sum": lambda log_arm, _log_safe: log_arm,
    "mean": lambda log_arm, _log_safe: log_arm,
}
"""``q`` by the loss form of the ARM (trap T11)."""


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


class SamplingParameters(NamedTuple):
    """What each request asks for; (n,) each."""

    weights: Tensor
    """w >= 0; 0 is the safe model exactly, and its ARM logits are not looked at."""
    deltas: Tensor
    """Of the safe set, in nats; infinity: none."""
    temperatures: Tensor
    """0: the most probable token."""
    top_k: Tensor
    """Tokens kept (integers); 0: all."""
    top_p: Tensor
    """Probability mass kept; 1: all."""
    min_p: Tensor
    """Least probability kept, as a share of the largest; 0: all."""


class GuidedStep(NamedTuple):
    """The chosen tokens (n,) and what the choice rested on, before temperature and filters."""

    tokens: Tensor
    log_probs: Tensor
    """log pi~ on the safe set, -inf outside: (n, V). NaN only where the model's own logits are."""
    safe_log_probs: Tensor
    """log pi_s of the chosen token, (n,)."""
    arm_log_probs: Tensor
    """log pi_arm of the chosen token, (n,); log pi_s where a request has no ARM."""
    divergence: Tensor
    """KL(pi~ || pi_s) in nats, (n,)."""


def choose_tokens(
    safe_logits: Tensor, arm_logits: Tensor, parameters: SamplingParameters, uniforms: Tensor, form: str
) -> GuidedStep:
    """One decoding step for n requests.

    Args:
        safe_logits: (n, V), any float dtype.
        arm_logits: (n, V), over the same token ids; rows with weight 0 may hold anything.
        parameters: Per request.
        uniforms: (n,) float64 in [0, 1), one draw from each request's own generator.
        form: ``reference``, ``sum`` or ``mean``.
    """
    log_safe, log_arm = (logits.float().log_softmax(-1) for logits in (safe_logits, arm_logits))
    log_arm = torch.where(parameters.weights[:, None] > 0, log_arm, log_safe)
    guided = combine(log_safe, log_arm, parameters.weights, form)
    guided = restrict(guided, log_safe, parameters.deltas)
    tokens = guided.argmax(-1)
    if (parameters.temperatures > 0).any():
        filtered = filter_tokens(apply_temperature(guided, parameters.temperatures), parameters)
        drawn = invert_cdf(filtered.softmax(-1), uniforms)
        tokens = torch.where(parameters.temperatures > 0, drawn, tokens)
    gap = torch.where(guided > -math.inf, guided - log_safe, 0.0)
    return GuidedStep(
        tokens=tokens,
        log_probs=guided,
        safe_log_probs=log_safe.gather(-1, tokens[:, None])[:, 0],
        arm_log_probs=log_arm.gather(-1, tokens[:, None])[:, 0],
        divergence=(guided.exp() * gap).sum(-1),
    )


def combine(log_safe: Tensor, log_arm: Tensor, weights: Tensor, form: str) -> Tensor:
    """``log pi_s + w q``, not normalised; a row with w = 0 is ``log pi_s`` bit for bit (no 0 * -inf, trap T1).

    A token that pi_s excludes stays excluded, whatever the ARM thinks of it.
    """
    weight = weights[:, None].to(log_safe)
    combined = log_safe + weight * FORMS[form](log_arm, log_safe)
    return torch.where((weight > 0) & (log_safe > -math.inf), combined, log_safe)


def safe_set(log_safe: Tensor, deltas: Tensor) -> Tensor:
    """``log pi_s >= max - delta`` as a mask (n, V). It holds the argmax of pi_s for every delta >= 0."""
    return log_safe >= log_safe.amax(-1, keepdim=True) - deltas[:, None]


def restrict(guided: Tensor, log_safe: Tensor, deltas: Tensor) -> Tensor:
    """Normalised log-probabilities on the safe set, -inf outside.

    The mask comes from pi_s alone, before any filter. Where the ARM gives every safe token probability 0, pi_s decides.
    A row that is unrestricted and unguided passes through unchanged.
    """
    inside = safe_set(log_safe, deltas)
    silenced = ~(guided.masked_fill(~inside, -math.inf) > -math.inf).any(-1, keepdim=True)
    masked = torch.where(silenced, log_safe, guided).masked_fill(~inside, -math.inf)
    untouched = inside.all(-1, keepdim=True) & (guided == log_safe).all(-1, keepdim=True)
    return torch.where(untouched, log_safe, masked.log_softmax(-1))


def apply_temperature(log_probs: Tensor, temperatures: Tensor) -> Tensor:
    """``log p / T`` up to a constant; T = 0 is left to the argmax and passes through. The largest entry becomes 0."""
    positive = torch.where(temperatures > 0, temperatures, 1.0)[:, None]
    return (log_probs - log_probs.amax(-1, keepdim=True)) / positive


def filter_tokens(scores: Tensor, parameters: SamplingParameters) -> Tensor:
    """Top-k, then top-p on what it left, then min-p; excluded tokens become -inf. One token always stays.

    Equal scores are kept in the order of their ids, so k is exact. Only rows that ask for top-k or top-p are sorted.
    """
    ranked = ((parameters.top_k > 0) | (parameters.top_p < 1)).nonzero().flatten()
    if len(ranked):
        kept = _filter_ranked(scores[ranked], parameters.top_k[ranked, None], parameters.top_p[ranked, None])
        scores = scores.index_copy(0, ranked, kept)
    floor = scores.amax(-1, keepdim=True) + parameters.min_p[:, None].log()
    return scores.masked_fill(scores < floor, -math.inf)


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
