"""Forms of two answers and a choice between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, model_validator
from pydantic_core import PydanticCustomError

from armature.contracts.datasets import MAX_ATTRIBUTES, Label, Row, Score, Text
from armature.contracts.preferences import AttributeName
from armature.datasets.forms.base import AskedRow, FileRow
from armature.datasets.forms.notes import Notes
from armature.datasets.forms.texts import (
    FileAnswer,
    FileDialogue,
    FilePrompt,
    FileText,
    messages_of,
    prompt_of,
    turns_of,
    without_prompt,
)
from armature.datasets.labels import labelled_pair, labels_from_scores

ScorePair = Annotated[list[Score], Field(min_length=2, max_length=2)]
ScorePairs = Annotated[dict[AttributeName, ScorePair], Field(min_length=1, max_length=MAX_ATTRIBUTES)]


class ResponsesForm(AskedRow):
    """Armature's ``{prompt, responses: [a, b]}`` with ``labels`` or ``scores`` by attribute."""

    prompt: FilePrompt
    responses: Annotated[list[FileAnswer], Field(min_length=2, max_length=2)]
    labels: Annotated[dict[AttributeName, Label | None], Field(min_length=1, max_length=MAX_ATTRIBUTES)] | None = None
    scores: ScorePairs | None = None

    @model_validator(mode="after")
    def _has_labels_or_scores(self) -> Self:
        if (self.labels is None) == (self.scores is None):
            raise ValueError("needs either labels or scores")
        return self

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow."""
        labels = self.labels or _labels_by_attribute(self.scores or {})
        return [labelled_pair(self.asked(), without_prompt(self.prompt, *self.responses, notes=notes), labels)]


class ChosenRejectedForm(AskedRow):
    """TRL's ``{prompt, chosen, rejected}``; UltraFeedback, argilla, orca and Skywork have it too.

    Without a prompt it is the answers' common prefix. Answers that are whole dialogues hold the prompt themselves.
    ``attribute`` is that of the choice; ``scores`` of (chosen, rejected) by attribute replace the choice.
    """

    chosen: FileText
    rejected: FileText
    attribute: AttributeName | None = None
    scores: ScorePairs | None = None

    @property
    def needs_attribute(self) -> bool:
        """Whether the choice names no attribute."""
        return self.attribute is None and self.scores is None

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow; the chosen answer comes first."""
        labels: dict[str, int | None] = {self.attribute or attribute: 0}
        prompt, *answers = self._parts(notes)
        return [labelled_pair(prompt, answers, _labels_by_attribute(self.scores) if self.scores else labels)]

    def _parts(self, notes: Notes) -> tuple[Any, str, str]:
        """Return (prompt, chosen, rejected), the answers as text."""
        question, chosen, rejected = self.question(), self.chosen, self.rejected
        is_whole = not isinstance(chosen, str) and any(message.role != "assistant" for message in chosen)
        if question is None or is_whole:
            size = _shared_prefix(chosen, rejected)
            if question is not None:
                notes["other_prompts"] += not _asks(chosen[:size], question)
            prompt, chosen, rejected = chosen[:size], chosen[size:], rejected[size:]
        else:
            prompt = question
        first, second = _text_of("chosen", chosen), _text_of("rejected", rejected)
        if prompt is question:
            first, second = without_prompt(question, first, second, notes=notes)
        return prompt_of(prompt, self.system), first, second


class TranscriptPairForm(FileRow):
    """hh-rlhf: two whole transcripts, equal up to the last turn of the assistant; a prompt may be apart."""

    prompt: Text | None = None
    chosen: Text
    rejected: Text

    @property
    def needs_attribute(self) -> bool:
        """The choice names no attribute."""
        return True

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow; pairs with an empty answer, or whose prompts differ, are left out."""
        chosen, rejected = (turns_of(text) or [] for text in (self.chosen, self.rejected))
        for column, turns in (("chosen", chosen), ("rejected", rejected)):
            if len(turns) < 2 or turns[-1][0] != "assistant":
                raise PydanticCustomError(
                    "no_answer", "{column} must end with a turn of the assistant", {"column": column}
                )
        if not (chosen[-1][1] and rejected[-1][1]):
            notes["empty_answers"] += 1
            return []
        if chosen[:-1] != rejected[:-1] or chosen[-2][0] != "user":
            notes["different_prompts"] += 1
            return []
        return [labelled_pair(messages_of(chosen[:-1]), [chosen[-1][1], rejected[-1][1]], {attribute: 0})]

    @classmethod
    def is_one(cls, columns: Mapping[str, Any]) -> bool:
        """Tell whether both answers are transcripts."""
        answers = [columns.get(name) for name in ("chosen", "rejected")]
        return all(isinstance(answer, str) and turns_of(answer) is not None for answer in answers)


class _Input(Row):
    messages: FilePrompt


class OpenAiPairForm(FileRow):
    """OpenAI's preference form: ``input.messages``, ``preferred_output``, ``non_preferred_output``."""

    input: _Input
    preferred_output: FileAnswer
    non_preferred_output: FileAnswer

    @property
    def needs_attribute(self) -> bool:
        """The choice names no attribute."""
        return True

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow."""
        return [labelled_pair(self.input.messages, [self.preferred_output, self.non_preferred_output], {attribute: 0})]


class SafeRlhfForm(FileRow):
    """PKU-SafeRLHF: which of two answers helps more, and which is safer."""

    prompt: FilePrompt
    response_0: Text
    response_1: Text
    better_response_id: Label
    safer_response_id: Label

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow."""
        labels: dict[str, int | None] = {
            "helpfulness": self.better_response_id,
            "harmlessness": self.safer_response_id,
        }
        return [labelled_pair(self.prompt, [self.response_0, self.response_1], labels)]


class StrengthForm(FileRow):
    """HelpSteer2-Preference and HelpSteer3: a strength from -3 (the first is better) to 3 (the second)."""

    prompt: FilePrompt = Field(validation_alias=AliasChoices("context", "prompt"))
    response_1: Text = Field(validation_alias=AliasChoices("response1", "response_1"))
    response_2: Text = Field(validation_alias=AliasChoices("response2", "response_2"))
    strength: Score = Field(validation_alias=AliasChoices("overall_preference", "preference_strength"))

    @property
    def needs_attribute(self) -> bool:
        """The strength is about the whole answer."""
        return True

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow; a strength of 0 is a tie."""
        label = None if self.strength == 0 else int(self.strength > 0)
        return [labelled_pair(prompt_of(self.prompt), [self.response_1, self.response_2], {attribute: label})]


class ShpForm(FileRow):
    """SHP: two comments; ``labels`` is 1 if A is preferred."""

    history: Text
    human_ref_A: Text
    human_ref_B: Text
    labels: Label

    @property
    def needs_attribute(self) -> bool:
        """The preference names no attribute."""
        return True

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow."""
        return [labelled_pair(self.history, [self.human_ref_A, self.human_ref_B], {attribute: 1 - self.labels})]


class ArenaForm(FileRow):
    """Chatbot arena: two dialogues with the same questions, and the winner."""

    conversation_a: FileDialogue
    conversation_b: FileDialogue
    winner: Literal["model_a", "model_b", "tie", "tie (bothbad)"]

    @property
    def needs_attribute(self) -> bool:
        """The vote names no attribute."""
        return True

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow; dialogues that differ before their last answer are left out."""
        first, second = self.conversation_a, self.conversation_b
        if first[:-1] != second[:-1]:
            notes["different_prompts"] += 1
            return []
        answers = [_text_of("conversation_a", first[-1:]), _text_of("conversation_b", second[-1:])]
        label = {"model_a": 0, "model_b": 1}.get(self.winner)
        return [labelled_pair(first[:-1], answers, {attribute: label})]


class TruthfulQaForm(FileRow):
    """TruthfulQA: the best answer is the truthful one."""

    question: Text = Field(validation_alias=AliasChoices("Question", "question"))
    best: Text = Field(validation_alias=AliasChoices("Best Answer", "best_answer"))
    worst: Text = Field(validation_alias="Best Incorrect Answer")

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow."""
        return [labelled_pair(self.question, [self.best, self.worst], {"truthfulness": 0})]


def _labels_by_attribute(scores: Mapping[str, list[float]]) -> dict[str, int | None]:
    first, second = ({name: pair[index] for name, pair in scores.items()} for index in (0, 1))
    return labels_from_scores(first, second)


def _asks(dialogue: Any, question: Any) -> bool:
    """Tell whether a prompt given apart is part of the dialogue."""
    if not isinstance(question, str):
        return bool(dialogue[-len(question) :] == question)
    return any(message.content.strip() == question.strip() for message in dialogue)


def _shared_prefix(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """Return the length of the common prompt: shared messages, or the text before the first other word."""
    shortest = min(len(chosen), len(rejected))
    if not isinstance(chosen, str) and chosen[-1].role == rejected[-1].role == "assistant":
        shortest -= 1  # two equal dialogues share their answer, too
    differing = (index for index in range(shortest) if chosen[index] != rejected[index])
    size = next(differing, shortest)
    if isinstance(chosen, str):
        words_end = all(str(text[size : size + 1]).isspace() for text in (chosen, rejected))
        if not words_end:
            size = max(0, *(chosen.rfind(space, 0, size) for space in " \n\t"))
        size = len(chosen[:size].rstrip())
    if not size:
        raise PydanticCustomError("no_common_prefix", "without a prompt both answers must begin with the same text")
    return size


def _text_of(column: str, answer: Any) -> str:
    if isinstance(answer, str) and answer:
        return answer
    if isinstance(answer, tuple) and [message.role for message in answer] == ["assistant"]:
        return str(answer[0].content)
    raise PydanticCustomError(
        "no_answer", "{column} must hold one answer of the assistant after the prompt", {"column": column}
    )
