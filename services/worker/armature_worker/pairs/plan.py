"""The plan of a job: each answer's prompt, instruction, teacher and random stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from armature.contracts.datasets import Prompt
from armature.contracts.specs.pairs import PairsGenerateSpec
from armature_worker.data.tokenized import stream_seed

_ANSWERS = 1
"""Number of the random stream of the answers."""
Side = Literal["for", "against"]
SIDES: tuple[Side, Side] = ("for", "against")


@dataclass(frozen=True)
class Ask:
    """One answer to write: a prompt below an instruction, and the seed of its random stream."""

    key: str
    teacher: int
    prompt: Prompt
    instruction: str
    seed: int


@dataclass(frozen=True)
class PlannedPair:
    """Two answers of one teacher to one prompt, under an instruction and its counterpart.

    Both sides have the same teacher: a difference in style between teachers would pass for the attribute.
    """

    number: int
    prompt_number: int
    prompt: Prompt
    attribute: str
    wording: int
    asks: tuple[Ask, Ask]

    @property
    def teacher(self) -> int:
        """Index of the teacher in the spec."""
        return self.asks[0].teacher


def plan_pairs(spec: PairsGenerateSpec, prompts: Sequence[Prompt]) -> list[PlannedPair]:
    """Plan all pairs; teachers and wordings take turns over prompts and attributes."""
    return [
        _plan_pair(spec, number, place, prompts[place[0]]) for number, place in enumerate(_places(spec, len(prompts)))
    ]


def _places(spec: PairsGenerateSpec, prompts: int) -> Iterator[tuple[int, int, int]]:
    """Yield prompt, attribute and repetition of each pair, by number."""
    for prompt in range(prompts):
        for attribute in range(len(spec.attributes)):
            for repetition in range(spec.pairs_per_prompt):
                yield prompt, attribute, repetition


def _plan_pair(spec: PairsGenerateSpec, number: int, place: tuple[int, int, int], prompt: Prompt) -> PlannedPair:
    turn = sum(place)
    attribute = spec.attributes[place[1]]
    teacher, wording = turn % len(spec.teachers), turn // len(spec.teachers)
    first, second = (
        Ask(f"answer/{number}/{side}", teacher, prompt, instruction, stream_seed(spec.seed, _ANSWERS, *place, index))
        for index, (side, instruction) in enumerate(zip(SIDES, spec.rubric(attribute).contrast(wording), strict=True))
    )
    return PlannedPair(number, place[0], prompt, attribute, wording, (first, second))
