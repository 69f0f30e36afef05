"""The port of a judge: two answers to one prompt, compared by one attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from armature.contracts.base import digest
from armature.contracts.datasets import Prompt
from armature.contracts.rubrics import Rubric
from armature.modeling.tokenization.dialogues import as_messages


@dataclass(frozen=True)
class Comparison:
    """Two answers to compare by one attribute. Nothing here tells which answer was written how.

    ``wording`` chooses among the rubric's instructions, for judges that read them.
    """

    prompt: Prompt
    answers: tuple[str, str]
    attribute: str
    rubric: Rubric
    wording: int = 0

    @property
    def key(self) -> str:
        """A name that equal comparisons share, the same in every attempt of a job."""
        return digest([as_messages(self.prompt), *self.answers, self.attribute, self.wording])[:24]


@dataclass(frozen=True)
class Verdict:
    """A judge's margin: positive where the first answer has more of the attribute, None if unreadable.

    ``orders_agree`` is whether the verdict was the same in both orders of the answers, for judges that read an order.
    """

    margin: float | None
    orders_agree: bool | None = None

    def choice(self, min_margin: float) -> int | None:
        """Return the index of the better answer; None for a tie or no verdict."""
        if self.margin is None or self.margin == 0 or abs(self.margin) < min_margin:
            return None
        return 0 if self.margin > 0 else 1


class Judge(Protocol):
    """A judge of pairs."""

    min_margin: float
    """Margin below which two answers are tied."""

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Judge each comparison, in order."""
