"""Tokens from the streams' logits: guided distribution, a draw from it, and what is reported of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from armature.algorithms.guided_decoding import GuidedDistribution, SamplingParameters, guided_distribution
from armature.algorithms.instruction_steering import adapt_temperatures, divergence, steer
from armature.errors import NonFiniteLogits
from armature.inference.logits import StreamLogits
from armature.inference.request import RequestParameters

FinishReason = Literal["stop", "length"]


class Sampled(NamedTuple):
    """A token. With finish reason ``stop`` it is the end-of-sequence token and belongs to no text."""

    token: int
    finish_reason: FinishReason | None
    divergence: float | None = None
    """KL(pi~ || pi_safe) of the distribution it was drawn from, before temperature and filters, in nats; None: not
    measured."""
    rejected: bool = False
    """Whether guidance alone would have favoured a token outside of the safe set."""
    undefined: bool = False
    """Whether the safe model's logits are NaN: the token means nothing, and its request can not go on."""
    logprob: float | None = None
    """log pi~ of the token; None: the request wants no log-probabilities, and the fields below are unset."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with log pi~ of each, best first, as many as are asked for; impossible ones are left out."""
    safe_logprob: float = 0.0
    """log pi_safe of the token."""
    arm_logprob: float = 0.0
    """log pi_arm of the token; log pi_safe without guidance."""


def check_defined(*sampled: Sampled) -> None:
    """Refuse tokens that the model has no finite logits for.

    Raises:
        NonFiniteLogits: One of them is undefined.
    """
    if any(one.undefined for one in sampled):
        raise NonFiniteLogits("the base model overflows on this prompt: there is no next token")


def distribute(
    logits: StreamLogits, parameters: RequestParameters, form: str
) -> tuple[GuidedDistribution, SamplingParameters]:
    """Combine the streams into the next token's distribution: first the instruction's, then the ARM's.

    Returns:
        The distribution, and the sampling parameters with temperatures as the instruction adapts them.
    """
    sampling, steering = parameters
    steered = None
    if logits.instructed is not None:
        log_plain, log_instructed = (one.float().log_softmax(-1) for one in (logits.safe, logits.instructed))
        steered = steer(log_plain, log_instructed, steering.strengths)
        cooled = adapt_temperatures(sampling.temperatures, divergence(log_plain, log_instructed), steering)
        sampling = sampling._replace(temperatures=cooled)
    return guided_distribution(logits.safe, logits.arm, sampling, form, logits.reference, steered), sampling


def describe_tokens(
    guided: GuidedDistribution, tokens: torch.Tensor, top_logprobs: Sequence[int | None], measured: Sequence[bool]
) -> list[Sampled]:
    """Describe one token (n,) of each row, without a finish reason.

    Args:
        guided: The distribution that the tokens were drawn from.
        tokens: (n,).
        top_logprobs: Alternatives that each row reports; None: no log-probabilities at all.
        measured: Whether each row's divergence is measured.
    """
    undefined = guided.log_safe.gather(-1, tokens[:, None])[:, 0].isnan()
    facts = torch.stack([tokens, guided.rejected.long(), undefined.long()], dim=1).tolist()
    described = [Sampled(token, None, rejected=bool(out), undefined=bool(none)) for token, out, none in facts]
    if rows := [row for row, wanted in enumerate(measured) if wanted]:
        add_divergences(described, rows, guided.select(rows).divergence)
    if rows := [row for row, count in enumerate(top_logprobs) if count is not None]:
        selected = guided.select(rows)
        parts = torch.stack(selected.of(tokens[rows]), dim=1).tolist()
        for row, scores, (logprob, safe, arm, log_partition) in zip(rows, selected.scores, parts, strict=True):
            best = scores.topk(min(top_logprobs[row] or 0, scores.shape[-1]))
            log_probs = (best.values - log_partition).tolist()
            top = tuple((id, p) for id, p in zip(best.indices.tolist(), log_probs, strict=True) if p > -math.inf)
            described[row] = described[row]._replace(logprob=logprob, top=top, safe_logprob=safe, arm_logprob=arm)
    return described


def add_divergences(sampled: list[Sampled], rows: Sequence[int], divergences: torch.Tensor) -> None:
    """Set the divergences (n,) of the tokens in these rows, in place."""
    for row, nats in zip(rows, divergences.tolist(), strict=True):
        sampled[row] = sampled[row]._replace(divergence=nats)
