"""Guided decoding: the safe model's next token, steered by an ARM, inside a set that the ARM can not leave.

Papers: ProSocialAlign's GUI-Gen (arXiv 2512.06515, 3.3.2), GenARM (arXiv 2410.08193). Per request and token::

    log pi~ = log pi_s + w q       w = 1/beta; q = log pi_arm - log pi_s  (reference form: the adapter off is pi_s)
                                               q = log pi_arm             (sum and mean forms)
    V_t     = {v : log pi_s(v) >= max log pi_s - delta}                   the safe set; every emitted token is in it
    strict  = argmax of q over V_t                                        the limit w -> infinity of the rule above

then temperature and filters (:mod:`armature.algorithms.token_sampling`) on what the safe set left. All in float32:
half-precision log-probabilities tie and flip greedy choices. Where an instruction steers as well
(:mod:`armature.algorithms.instruction_steering`), its log P takes the place of log pi_s in the first line alone: q and
the safe set know nothing of it. An ARM on a model of its own refers to that model without the adapter.

Symbols: n requests, V vocabulary; every parameter is a tensor (n,), so requests with different ones share a batch.

What differs from the papers: the safe set (the lexicographic order as a guarantee, not a tendency); q has the form that
the ARM was trained with; the sum of weights is not divided out, so w does not act as a temperature; and a client's
logit bias is added to what is wished for, never to what is safe.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from armature.algorithms.token_sampling import apply_temperature, filter_tokens, invert_cdf

FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reference": lambda log_arm, log_reference: torch.where(
        log_reference > -math.inf, log_arm - log_reference, -math.inf
    ),
    "sum": lambda log_arm, _log_reference: log_arm,
    "mean": lambda log_arm, _log_reference: log_arm,
}
"""``q`` by the loss form of the ARM (trap T11), from what the ARM says and what its backbone says without it."""


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


class LogitBias(NamedTuple):
    """Nats added to the scores of single tokens: ``scores[rows, tokens] += values``, (m,) each."""

    rows: Tensor
    tokens: Tensor
    values: Tensor


class SamplingParameters(NamedTuple):
    """What each request asks for; (n,) each."""

    weights: Tensor
    """w >= 0; 0 is the safe model exactly, and its ARM logits are not looked at."""
    deltas: Tensor
    """Of the safe set, in nats; infinity: none."""
    strict: Tensor
    """Booleans: the ARM's favourite inside the safe set and nothing else, where w > 0."""
    temperatures: Tensor
    """0: the most probable token."""
    top_k: Tensor
    """Tokens kept (integers); 0: all."""
    top_p: Tensor
    """Probability mass kept; 1: all."""
    min_p: Tensor
    """Least probability kept, as a share of the largest; 0: all."""
    bias: LogitBias | None = None


class GuidedDistribution(NamedTuple):
    """What a token is drawn from, before temperature and filters; (n, V) each unless said otherwise."""

    log_probs: Tensor
    """log pi~ on the safe set, -inf outside. NaN only where the model's own logits are."""
    log_safe: Tensor
    log_arm: Tensor
    """log pi_s where a request has no ARM."""
    rejected: Tensor
    """(n,) bool: the token that guidance alone would favour is outside the safe set."""

    def of(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(log pi~, log pi_s, log pi_arm)`` of one token (n,) each."""
        guided, safe, arm = (table.gather(-1, tokens[:, None])[:, 0] for table in self[:3])
        return guided, safe, arm

    def divergence(self) -> Tensor:
        """KL(pi~ || pi_s) in nats, (n,)."""
        if self.log_probs is self.log_safe:
            return self.log_safe.new_zeros(len(self.log_safe))
        lowest = torch.finfo(self.log_safe.dtype).min  # finite, so that what has probability 0 adds 0 and not NaN
        gap = self.log_probs.clamp(min=lowest) - self.log_safe.clamp(min=lowest)
        divergence: Tensor = torch.linalg.vecdot(self.log_probs.softmax(-1), gap)
        return divergence


def guided_distribution(
    safe_logits: Tensor,
    arm_logits: Tensor,
    parameters: SamplingParameters,
    form: str,
    reference_logits: Tensor | None = None,
    steered: Tensor | None = None,
) -> GuidedDistribution:
    """The distribution of the next token for n requests.

    Args:
        safe_logits: (n, V), any float dtype.
        arm_logits: (n, V), over the same token ids; rows with weight 0 may hold anything.
        parameters: Per request.
        form: ``reference``, ``sum`` or ``mean``.
        reference_logits: Of the ARM's backbone without its adapter, (n, V); None: it is the safe model.
        steered: What guidance starts from in the place of log pi_s, log-probabilities up to a constant (n, V).
    """
    log_safe = safe_logits.float().log_softmax(-1)
    untouched = _untouched(parameters, log_safe, steered)
    if untouched.all():
        return GuidedDistribution(log_safe, log_safe, log_safe, rejected=~untouched)
    log_arm, guided_rows = arm_logits.float().log_softmax(-1), parameters.weights > 0
    if not guided_rows.all():
        log_arm = torch.where(guided_rows[:, None], log_arm, log_safe)
    log_reference = log_safe if reference_logits is None else reference_logits.float().log_softmax(-1)
    liked = FORMS[form](log_arm, log_reference)
    start = log_safe if steered is None else steered
    wished = _biased(combine(start, liked, parameters.weights), parameters.bias)
    inside = safe_set(log_safe, parameters.deltas)
    guided, best = restrict(wished, log_safe, inside)
    if (strict := parameters.strict & guided_rows).any():
        guided = torch.where(strict[:, None], favourite(_biased(liked, parameters.bias), log_safe, inside), guided)
    if untouched.any():
        guided = torch.where(untouched[:, None], log_safe, guided)
    return GuidedDistribution(guided, log_safe, log_arm, rejected=wished.amax(-1) > best)


def choose_tokens(guided: GuidedDistribution, parameters: SamplingParameters, uniforms: Tensor) -> Tensor:
    """One token for each of n requests.

    Args:
        guided: What they are drawn from.
        parameters: Per request.
        uniforms: (n,) float64 in [0, 1), one draw from each request's own generator.
    """
    tokens = guided.log_probs.argmax(-1)
    if (parameters.temperatures > 0).any():
        scores = apply_temperature(guided.log_probs, parameters.temperatures)
        filtered = filter_tokens(scores, parameters.top_k, parameters.top_p, parameters.min_p)
        drawn = invert_cdf(filtered.softmax(-1), uniforms)
        tokens = torch.where(parameters.temperatures > 0, drawn, tokens)
    return tokens


def combine(log_start: Tensor, liked: Tensor, weights: Tensor) -> Tensor:
    """``log pi_s + w q``, not normalised; a row with w = 0 is ``log pi_s`` bit for bit (no 0 * -inf, trap T1).

    A token that pi_s excludes stays excluded, whatever the ARM thinks of it.
    """
    guided, weight = weights[:, None] > 0, weights[:, None].to(log_start)
    combined = torch.addcmul(log_start, weight, liked)
    combined.nan_to_num_(nan=-math.inf, posinf=math.inf, neginf=-math.inf)  # -inf + inf: excluded by pi_s
    return combined if guided.all() else torch.where(guided, combined, log_start)


def safe_set(log_safe: Tensor, deltas: Tensor) -> Tensor:
    """``log pi_s >= max - delta`` as a mask (n, V). It holds the argmax of pi_s for every delta >= 0."""
    return log_safe >= log_safe.amax(-1, keepdim=True) - deltas[:, None]


def restrict(guided: Tensor, log_safe: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised log-probabilities on the safe set, -inf outside; and each row's best score inside, (n,).

    The mask comes from pi_s alone, before any filter. Where the ARM gives every safe token probability 0, pi_s decides.
    """
    masked, best = _masked(guided, log_safe, inside)
    return masked.log_softmax(-1), best


def favourite(liked: Tensor, log_safe: Tensor, inside: Tensor) -> Tensor:
    """All probability on the safe set's token with the largest ``q``: log-probabilities 0 there, -inf elsewhere."""
    best = _masked(liked, log_safe, inside & (log_safe > -math.inf))[0].argmax(-1, keepdim=True)
    return torch.full_like(log_safe, -math.inf).scatter(-1, best, 0.0)


def _masked(scores: Tensor, log_safe: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """``scores`` inside, -inf outside, and the best of each row; where it is -inf, ``log_safe`` takes their place."""
    masked = torch.where(inside, scores, -math.inf)
    best = masked.amax(-1)
    if (silenced := best == -math.inf).any():
        masked = torch.where(silenced[:, None] & inside, log_safe, masked)
    return masked, best


def _untouched(parameters: SamplingParameters, log_safe: Tensor, steered: Tensor | None) -> Tensor:
    """Which rows are the safe model's own, bit for bit: not guided, restricted, biased or steered. (n,) bool."""
    untouched = (parameters.weights == 0) & (parameters.deltas == math.inf)
    if parameters.bias is not None:
        untouched[parameters.bias.rows] = False
    return untouched if steered is None else untouched & (steered == log_safe).all(-1)


def _biased(scores: Tensor, bias: LogitBias | None) -> Tensor:
    return scores if bias is None else scores.index_put((bias.rows, bias.tokens), bias.values, accumulate=True)
