"""Steering by an instruction, without training: what the instruction changes is made stronger.

Paper: SDA (arXiv 2511.16324). The model answers the prompt as it is, ``P1 = pi(. | Q)``, and below an instruction,
``P2 = pi(. | I, Q)``; both contexts go on with the same token. Per request and token::

    a     = 2 (1 / (1 + exp(1 - 100/S)) - 1/2)             Eq. 3: what an answer of score S in (0, 100] lacks
    log P = log P2 + kappa a (log P2 - log P1)             Eq. 5
          = log P1 + s (log P2 - log P1)                   with s = 1 + kappa a, the strength
    T     = max(T_min, T_0 (1/2)^(JS(P1, P2) / sigma))     Eq. 6-7, JS in nats

Symbols: n requests, V vocabulary; every parameter is a tensor (n,), so requests with different ones share a batch.

What differs from the paper: one strength in the place of kappa and a, so that 0 is the prompt as it is, 1 the
instruction as it is, and what lies between and beyond is continuous; a token that either of the two excludes stays
excluded; and T_min raises no temperature that is lower already, so that a greedy request stays greedy.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Steering(NamedTuple):
    """What each request asks for; (n,) each."""

    strengths: Tensor
    """s >= 0; 0: no steering, and its instructed logits are not looked at."""
    sigmas: Tensor
    """The divergence that halves the temperature, in nats; infinity: it stays."""
    floors: Tensor
    """T_min."""


def amplification(score: float) -> float:
    """``a`` of Eq. 3: 0 for an answer of score 100, and close to 1 for one that is worth nothing.

    Args:
        score: Of the answer without steering, in (0, 100].
    """
    return 2 / (1 + math.exp(1 - 100 / score)) - 1


def steer(log_plain: Tensor, log_instructed: Tensor, strengths: Tensor) -> Tensor:
    """``log P`` of Eq. 5, not normalised, (n, V). Strength 0 is P1 bit for bit, and strength 1 is P2.

    Args:
        log_plain: log P1, (n, V).
        log_instructed: log P2, (n, V).
        strengths: s, (n,).
    """
    strength = strengths[:, None].to(log_plain)
    possible = (log_plain > -math.inf) & (log_instructed > -math.inf)
    moved = log_instructed + (strength - 1) * (log_instructed - log_plain)
    return torch.where(strength > 0, moved.masked_fill(~possible, -math.inf), log_plain)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The Jensen-Shannon divergence of distributions (n, V), from 0 to ln 2 nats, (n,)."""
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2)

    def gap(log_one: Tensor) -> Tensor:
        return torch.where(log_one > -math.inf, log_one.exp() * (log_one - log_mean), 0.0).sum(-1)

    return ((gap(log_p) + gap(log_q)) / 2).clamp(0, math.log(2))


def adapt_temperatures(temperatures: Tensor, divergences: Tensor, steering: Steering) -> Tensor:
    """``T`` of Eq. 6: the more the instruction changes, the less is left to chance, (n,).

    Args:
        temperatures: T_0, (n,).
        divergences: JS(P1, P2), (n,).
        steering: sigma and T_min; requests without steering keep T_0.
    """
    cooled = torch.maximum(steering.floors, temperatures * torch.exp2(-divergences / steering.sigmas))
    return torch.where(steering.strengths > 0, torch.minimum(temperatures, cooled), temperatures)
