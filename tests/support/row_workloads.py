"""A stretch of a server's life in rows: requests join, run beside prompts in pieces, and leave."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch

from tests.support.rows import TwinLogits, TwinRows

PREFERENCES = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.2, 0.3, 0.5), None)
MOST_SLOTS = 6
_SYSTEM = tuple(range(3, 70))


def play(rows: TwinRows, seed: int, turns: int, device: str = "cpu") -> Iterator[TwinLogits]:
    """The logits of every turn. The same seed is the same life, whatever the rows compute."""
    draw = random.Random(seed)
    for _ in range(turns):
        if len(rows) and draw.random() < 0.2:
            rows.keep(sorted(draw.sample(range(len(rows)), draw.randrange(len(rows) + 1))))
        new = [_request(draw) for _ in range(draw.randrange(1, 4))]
        joins = len(rows) + len(new) <= MOST_SLOTS and draw.random() < 0.4
        prefill = rows.begin(new) if joins else None
        while prefill is not None and prefill.remaining:
            rows.runner.extend(prefill, 96)
            if len(rows) and draw.random() < 0.5:
                yield rows.step(_tokens(draw, len(rows), device))
        if prefill is not None:
            rows.join(prefill)
            yield rows.logits_of(prefill)
        for _ in range(draw.randrange(1, 7) if len(rows) else 0):
            yield rows.step(_tokens(draw, len(rows), device))


def assert_alike(ours: Iterator[TwinLogits], theirs: Iterator[TwinLogits], tolerance: float) -> int:
    """Compare turn by turn, before the next one overwrites anything; returns how many there were."""
    turns = 0
    for one, other in zip(ours, theirs, strict=True):
        for mine, expected in ((one.safe, other.safe), (one.arm, other.arm)):
            torch.testing.assert_close(mine.cpu(), expected.cpu(), atol=tolerance, rtol=tolerance / 10)
        turns += 1
    return turns


def _request(draw: random.Random) -> tuple[Sequence[int], Sequence[float] | None, str]:
    """Some prompts begin alike; some are longer than the fewest columns that are attended to."""
    own = [draw.randrange(3, 259) for _ in range(draw.choice((1, 5, 30, 280)))]
    prompt: Sequence[int] = [*_SYSTEM, *own] if draw.random() < 0.4 else own
    return prompt, draw.choice(PREFERENCES), draw.choice(("a", "b"))


def _tokens(draw: random.Random, count: int, device: str) -> torch.Tensor:
    return torch.tensor([draw.randrange(3, 259) for _ in range(count)], device=device)
