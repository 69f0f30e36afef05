"""Requests into rows at once, as most tests want them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from armature.inference.runner import RowRequest, Rows, TwinLogits


def join_rows(
    rows: Rows,
    prompts: Sequence[Sequence[int]],
    preferences: Sequence[Sequence[float] | None],
    chunk: int = sys.maxsize,
) -> TwinLogits:
    """Compute whole prompts, ``chunk`` tokens at a time, and take them in; returns the logits for the first tokens."""
    prefill = rows.begin([RowRequest(*pair) for pair in zip(prompts, preferences, strict=True)])
    while prefill.remaining:
        prefill.advance(chunk)
    rows.join(prefill)
    return prefill.logits
