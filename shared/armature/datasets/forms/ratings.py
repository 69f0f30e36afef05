"""Forms of rated answers: one per row, or several of one prompt with their scores or ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from armature.contracts.datasets import MAX_ATTRIBUTES, RatedAnswer, Row, Score, Text
from armature.contracts.preferences import AttributeName
from armature.datasets.forms.base import AskedRow, FileRow
from armature.datasets.forms.notes import Notes
from armature.datasets.forms.texts import FileAnswer, FilePrompt, prompt_of, without_prompt
from armature.datasets.labels import Scores, labelled_pair, labels_from_scores, outermost_pairs


def _truth(value: Any) -> Any:
    """Read KTO's 0 and 1 as false and true."""
    is_number = isinstance(value, int | float) and value in (0, 1)
    return bool(value) if is_number else value


class RatedAnswerForm(AskedRow):
    """TRL's ``{prompt, completion, label}`` (KTO), or ``scores`` by attribute instead of ``label``."""

    completion: FileAnswer
    label: Annotated[bool, BeforeValidator(_truth)] | None = None
    attribute: AttributeName | None = None
    scores: Annotated[dict[AttributeName, Score], Field(min_length=1, max_length=MAX_ATTRIBUTES)] | None = None

    @property
    def needs_attribute(self) -> bool:
        """Whether the label names no attribute."""
        return self.attribute is None and self.scores is None

    @model_validator(mode="after")
    def _has_label_or_scores(self) -> Self:
        if (self.label is None) == (self.scores is None):
            raise ValueError("needs either label or scores")
        return self

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow; a label becomes a score of 0 or 1."""
        scores = self.scores or {self.attribute or attribute: float(bool(self.label))}
        (completion,) = without_prompt(self.question(), self.completion, notes=notes)
        return [RatedAnswer(prompt=self.asked(), completion=completion, scores=scores)]


class HelpSteerForm(FileRow):
    """HelpSteer and HelpSteer2: an answer with five scores. The answers of one prompt become pairs."""

    prompt: FilePrompt
    response: Text
    helpfulness: Score
    correctness: Score
    coherence: Score
    complexity: Score
    verbosity: Score

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow."""
        scores = self.model_dump(include={"helpfulness", "correctness", "coherence", "complexity", "verbosity"})
        return [RatedAnswer(prompt=prompt_of(self.prompt), completion=self.response, scores=scores)]


class SafetyForm(FileRow):
    """BeaverTails: an answer that is safe or not."""

    prompt: FilePrompt
    response: Text
    is_safe: bool

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow."""
        scores = {"harmlessness": float(self.is_safe)}
        return [RatedAnswer(prompt=self.prompt, completion=self.response, scores=scores)]


class WildGuardForm(FileRow):
    """WildGuardMix: an answer that is harmful or not; prompts without one are left out."""

    prompt: FilePrompt
    response: Text | None = None
    response_harm_label: Literal["harmful", "unharmful"] | None = None

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow."""
        if self.response is None or self.response_harm_label is None:
            notes["unrated_answers"] += 1
            return []
        scores = {"harmlessness": float(self.response_harm_label == "unharmful")}
        return [RatedAnswer(prompt=self.prompt, completion=self.response, scores=scores)]


class _RankedAnswer(Row):
    answer: Text
    rank: Score


class NectarForm(FileRow):
    """Nectar: several answers with ranks, 1 for the best."""

    prompt: FilePrompt
    answers: list[_RankedAnswer] = Field(min_length=2)

    @property
    def needs_attribute(self) -> bool:
        """The ranks are about the whole answer."""
        return True

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow."""
        answers = [(answer.answer, {attribute: -answer.rank}) for answer in self.answers]
        return _paired(prompt_of(self.prompt), answers, notes)


def _rating(value: Any) -> Any:
    """Read a rating, which UltraFeedback has as text; N/A is none."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return None


class _Annotation(Row):
    rating: Annotated[Score | None, BeforeValidator(_rating)] = Field(
        None, validation_alias=AliasChoices("Rating", "rating")
    )


class _Annotations(Row):
    helpfulness: _Annotation | None = None
    honesty: _Annotation | None = None
    instruction_following: _Annotation | None = None
    truthfulness: _Annotation | None = None

    def scores(self) -> Scores:
        """Return the ratings there are, by attribute."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: one.rating for name, one in found.items() if one is not None and one.rating is not None}


class _Completion(Row):
    response: Text
    annotations: _Annotations


class UltraFeedbackForm(FileRow):
    """openbmb/UltraFeedback: completions of one instruction with ratings by attribute."""

    instruction: FilePrompt
    completions: list[_Completion]

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow."""
        answers = [(completion.response, completion.annotations.scores()) for completion in self.completions]
        rated = [(text, scores) for text, scores in answers if scores]
        notes["unrated_answers"] += len(answers) - len(rated)
        return _paired(self.instruction, rated, notes)


def _paired(prompt: Any, answers: Sequence[tuple[str, Scores]], notes: Notes) -> Sequence[Row]:
    pairs = outermost_pairs(answers)
    notes["unpaired_ranks"] += len(answers) - 2 * len(pairs)
    return [
        labelled_pair(prompt, [better, worse], labels_from_scores(one, other))
        for (better, one), (worse, other) in pairs
    ]
