"""Training examples with others mixed into every batch.

Tuning on the former then does not unlearn the latter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from armature_worker.data.tokenized import Example, batch_indices, stream_seed

_REHEARSAL = 3
"""Number of the random stream that orders the rehearsed examples."""


@dataclass(frozen=True)
class MixedExamples:
    """Examples to learn, and examples to rehearse, which make up ``share`` of every batch."""

    learned: Sequence[Example]
    rehearsed: Sequence[Example] = ()
    share: float = 0.0

    def batch(self, seed: int, step: int, size: int) -> list[Example]:
        """Choose the examples of step ``step`` (from 0); a batch of two or more has some of both kinds."""
        others = min(max(1, round(self.share * size)), size - 1) if self.rehearsed else 0
        rows = batch_indices(seed, step, len(self.learned), size - others)
        chosen = [self.learned[row] for row in rows]
        if others:
            stream = stream_seed(seed, _REHEARSAL)
            chosen += [self.rehearsed[row] for row in batch_indices(stream, step, len(self.rehearsed), others)]
        return chosen
