"""How much a figure rises when the same prompts are measured twice, with an interval over prompts.

Paper: the percentile bootstrap (Efron 1979), paired::

    relative rise = sum_i after_i / sum_i before_i - 1
    mean rise     = mean_i (after_i - before_i)

Symbols: i a prompt; before and after what was measured on it without and with a change, such as the nats of its
completions. Their numbers of tokens are the same, so this is the relative rise of the NLL too.

What differs from the paper: nothing. Whole prompts are drawn, with both of their measurements, so what makes one prompt
harder than another cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def relative_rise(before: Sequence[float], after: Sequence[float], seed: int, draws: int = DRAWS) -> Estimate:
    """``sum after / sum before - 1`` with its 2.5 and 97.5 percentiles over redrawn prompts.

    The same seed draws the same prompts, so that several changes are compared on the same draws.

    Raises:
        ValueError: No prompts, not as many after as before, or a total of zero or less before.
    """
    pairs = _pair(before, after)
    if min(before) < 0 or sum(before) <= 0:
        raise ValueError("a relative rise needs a total above zero to start from")
    totals = _redraw_all(pairs, seed, draws)
    rises = totals[:, 1] / totals[:, 0] - 1
    return _estimate(float(pairs[1].sum() / pairs[0].sum() - 1), rises[rises.isfinite()])


def mean_rise(before: Sequence[float], after: Sequence[float], seed: int, draws: int = DRAWS) -> Estimate:
    """``mean (after - before)`` with its 2.5 and 97.5 percentiles over redrawn prompts; of booleans, of their share.

    Raises:
        ValueError: No prompts, or not as many after as before.
    """
    pairs = _pair(before, after)
    totals = _redraw_all(pairs, seed, draws)
    return _estimate(float((pairs[1] - pairs[0]).mean()), (totals[:, 1] - totals[:, 0]) / pairs.shape[1])


def _pair(before: Sequence[float], after: Sequence[float]) -> torch.Tensor:
    if not before or len(before) != len(after):
        raise ValueError(f"{len(before)} and {len(after)} measurements are no pairs")
    return torch.tensor([list(before), list(after)], dtype=torch.float64)


def _estimate(value: float, rises: torch.Tensor) -> Estimate:
    low, high = torch.quantile(rises, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value, min(low, value), max(high, value))


def _redraw_all(pairs: torch.Tensor, seed: int, draws: int) -> torch.Tensor:
    """Totals before and after over redrawn prompts, (draws, 2)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([_redraw(pairs, generator) for _ in range(draws)])


def _redraw(pairs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    count = pairs.shape[1]
    return pairs[:, torch.randint(count, (count,), generator=generator)].sum(1)
