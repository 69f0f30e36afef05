"""Guided decoding: the safe model's next token, steered by an ARM, inside a set that the ARM can not leave.

Papers: ProSocialAlign's GUI-Gen (arXiv 2512.06515, 3.3.2), GenARM (arXiv 2410.08193). Per request and token::

    log pi~ = log pi_s + w q       w = 1/beta; q = log pi_arm - log pi_s  (reference form: the adapter off is pi_s)
                                               q = log pi_arm             (sum and mean forms)
    V_t     = {v : log pi_s(v) >= max log pi_s - delta}                   the safe set; every emitted token is in it
    strict  = argmax of q over V_t                                        the limit w -> infinity of the rule above

Up to a constant of each row, log pi~ is linear in logits, and logits are linear in the last hidden states h::

    log pi~ = w_s z_s + w_arm z_arm + w_ref z_ref = (w_s h_s + w_arm h_arm + w_ref h_ref) W^T    (one model's head W)

so a request for log pi~ and nothing else (no safe set, no parts) costs one row of the head: :class:`Mixture`.

Then temperature and filters (:mod:`armature.algorithms.token_sampling`) on what the safe set left. All in float32:
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
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from armature.algorithms.safe_sets import favourite, restrict, safe_set
from armature.algorithms.token_sampling import apply_temperature, filter_tokens, invert_cdf

FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reference": lambda arm, reference: arm - reference,
    "sum": lambda arm, _reference: arm,
    "mean": lambda arm, _reference: arm,
}
"""``q`` up to a constant of each row, by the loss form of the ARM (docs/traps.md, 11), from the ARM's logits and those
of its backbone without it. May be ``arm`` itself. Where it is no number, or infinite, the token is not liked: one of
the two excludes it (-inf - -inf, -inf, +inf), or has overflowed."""


class Mixture(NamedTuple):
    """Weights of the streams' logits in log pi~, without a safe set."""

    safe: float
    arm: float
    reference: float

    @classmethod
    def of(cls, form: str, weight: float) -> Mixture:
        """Of an ARM in this form under w. q is linear, so its values for unit logits are its coefficients."""
        one, zero = torch.tensor([1.0, 0.0], dtype=torch.float32)
        arm, reference = FORMS[form](one, zero).item(), FORMS[form](zero, one).item()
        return cls(1.0, weight * arm, weight * reference)


_LOWEST = torch.finfo(torch.float32).min


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
    """What a token is drawn from, before temperature and filters. What drawing does not need is computed when asked."""

    scores: Tensor
    """log pi~ up to a constant of each row, -inf outside of the safe set (n, V). NaN only where the logits are."""
    log_safe: Tensor
    """(n, V)."""
    arm_logits: Tensor
    """(n, V); log pi_s where a request has no ARM."""
    untouched: Tensor
    """(n,) bool: the row is the safe model's own, bit for bit."""
    rejected: Tensor
    """(n,) bool: the token that guidance alone would favour is outside the safe set."""

    def select(self, rows: Sequence[int]) -> GuidedDistribution:
        """Of these rows."""
        if list(rows) == list(range(len(self.scores))):
            return self
        index = torch.tensor(rows, dtype=torch.long, device=self.scores.device)
        return GuidedDistribution(*(table[index] for table in self))

    @property
    def log_partition(self) -> Tensor:
        """The scores' constant, (n,): ``log pi~ = scores - log_partition``. 0 where a row is untouched."""
        return self.scores.logsumexp(-1).masked_fill_(self.untouched, 0.0)

    @property
    def divergence(self) -> Tensor:
        """KL(pi~ || pi_s) in nats, (n,)."""
        return _divergence(self.scores, self.log_safe).masked_fill_(self.untouched, 0.0)

    @property
    def log_probs(self) -> Tensor:
        """log pi~ of every token, (n, V)."""
        return self.scores - self.log_partition[:, None]

    def of(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(log pi~, log pi_s, log pi_arm)`` of one token (n,) each, and the log-partition."""
        guided, safe, arm = (
            table.gather(-1, tokens[:, None])[:, 0] for table in (self.scores, self.log_safe, self.arm_logits)
        )
        log_partition = self.log_partition
        return guided - log_partition, safe, arm - self.arm_logits.logsumexp(-1), log_partition


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
        return GuidedDistribution(log_safe, log_safe, log_safe, untouched, rejected=~untouched)
    arm, guided_rows = arm_logits.float(), parameters.weights > 0
    if not guided_rows.all():
        arm = torch.where(guided_rows[:, None], arm, log_safe)
    liked = FORMS[form](arm, log_safe if reference_logits is None else reference_logits.float())
    start = log_safe if steered is None else steered
    wished = _biased(combine(start, liked, parameters.weights), parameters.bias)
    unsteered = _biased(log_safe, parameters.bias)
    outside = safe_set(log_safe, parameters.deltas)
    scores, best = restrict(wished, unsteered, outside)
    rejected = wished.amax(-1) > best
    if (strict := parameters.strict & guided_rows).any():
        scores = torch.where(strict[:, None], favourite(_biased(liked, parameters.bias), unsteered, outside), scores)
    if untouched.any():
        scores = torch.where(untouched[:, None], log_safe, scores)
    return GuidedDistribution(scores, log_safe, arm, untouched, rejected)


def safe_divergence(scores: Tensor, safe_logits: Tensor) -> Tensor:
    """KL(pi~ || pi_s) in nats (n,), from log pi~ up to a constant of each row (n, V) and the safe logits (n, V)."""
    return _divergence(scores, safe_logits.float().log_softmax(-1))


def choose_tokens(guided: GuidedDistribution, parameters: SamplingParameters, uniforms: Tensor) -> Tensor:
    """One token for each of n requests.

    Args:
        guided: What they are drawn from.
        parameters: Per request.
        uniforms: (n,) float64 in [0, 1), one draw from each request's own generator.
    """
    tokens = guided.scores.argmax(-1)
    if (parameters.temperatures > 0).any():
        scores = apply_temperature(guided.scores, parameters.temperatures)
        filtered = filter_tokens(scores, parameters.top_k, parameters.top_p, parameters.min_p)
        drawn = invert_cdf(filtered.softmax(-1), uniforms)
        tokens = torch.where(parameters.temperatures > 0, drawn, tokens)
    return tokens


def combine(log_start: Tensor, liked: Tensor, weights: Tensor) -> Tensor:
    """``log pi_s + w q``, not normalised; a row with w = 0 is ``log pi_s`` bit for bit (no 0 * -inf, docs/traps.md, 1).

    A token that pi_s excludes stays excluded, whatever the ARM thinks of it; and what is not liked is excluded.
    """
    guided, weight = weights[:, None] > 0, weights[:, None].to(log_start)
    combined = torch.addcmul(log_start, weight, liked)
    combined.nan_to_num_(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
    return combined if guided.all() else torch.where(guided, combined, log_start)


def _divergence(scores: Tensor, log_safe: Tensor) -> Tensor:
    probabilities = scores.softmax(-1)
    gaps = scores.clamp(min=_LOWEST).sub_(log_safe.clamp(min=_LOWEST))  # finite, so that what has probability 0 adds 0
    mean_gap: Tensor = torch.linalg.vecdot(probabilities, gaps)
    return (mean_gap - scores.logsumexp(-1)).clamp_(min=0)  # rounding may leave less, and sums of it must not fall


def _untouched(parameters: SamplingParameters, log_safe: Tensor, steered: Tensor | None) -> Tensor:
    """Which rows are the safe model's own, bit for bit: not guided, restricted, biased or steered. (n,) bool."""
    untouched = (parameters.weights == 0) & (parameters.deltas == math.inf)
    if parameters.bias is not None:
        untouched[parameters.bias.rows] = False
    return untouched if steered is None else untouched & (steered == log_safe).all(-1)


def _biased(scores: Tensor, bias: LogitBias | None) -> Tensor:
    return scores if bias is None else scores.index_put((bias.rows, bias.tokens), bias.values, accumulate=True)
