"""How much a total rises when the same prompts are measured twice, with an interval over prompts.

Paper: the percentile bootstrap (Efron 1979), paired::

    rise = sum_i after_i / sum_i before_i - 1

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
    if not before or len(before) != len(after):
        raise ValueError(f"{len(before)} and {len(after)} measurements are no pairs")
    pairs = torch.tensor([list(before), list(after)], dtype=torch.float64)
    if min(before) < 0 or sum(before) <= 0:
        raise ValueError("a relative rise needs a total above zero to start from")
    generator = torch.Generator().manual_seed(seed)
    totals = torch.stack([_redraw(pairs, generator) for _ in range(draws)])
    rises = totals[:, 1] / totals[:, 0] - 1
    low, high = torch.quantile(rises[rises.isfinite()], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    value = float(pairs[1].sum() / pairs[0].sum() - 1)
    return Estimate(value, min(low, value), max(high, value))


def _redraw(pairs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    count = pairs.shape[1]
    return pairs[:, torch.randint(count, (count,), generator=generator)].sum(1)
