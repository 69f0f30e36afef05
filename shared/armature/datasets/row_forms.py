"""The forms in which rows come in files: TRL's, taken as they are, and ours with several attributes.

Each form is a model of the file's columns, so that a complaint names the column that the user wrote, and converts
itself to the row that jobs use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from armature.contracts.datasets import (
    MAX_ATTRIBUTES,
    Answer,
    DatasetFormat,
    Dialogue,
    Label,
    Lexicon,
    PreferenceRow,
    Prompt,
    PromptCompletionRow,
    PromptRow,
    RatedAnswer,
    Row,
    Score,
    TextOrDialogue,
)
from armature.contracts.preferences import AttributeName

ScorePair = Annotated[list[Score], Field(min_length=2, max_length=2)]
_TEXT_COLUMNS = ("prompt", "completion", "chosen", "rejected", "messages")


class FileRow(Row):
    """Base of the forms."""

    @property
    def needs_attribute(self) -> bool:
        """Whether the row judges answers without saying in which attribute."""
        return False

    def convert(self, attribute: str) -> Row:
        """The row that jobs use; a judgement that names no attribute is about ``attribute``."""
        return self


class PromptForm(FileRow, PromptRow):
    """``{prompt}``."""


class PromptCompletionForm(FileRow, PromptCompletionRow):
    """``{prompt, completion}``."""


class LexiconForm(FileRow, Lexicon):
    """A scorer."""


class MessagesForm(FileRow):
    """``{messages}``: a dialogue whose last message, the assistant's, is the completion."""

    messages: Dialogue

    @model_validator(mode="after")
    def _has_an_answer(self) -> Self:
        if [message.role for message in self.messages[-2:]] != ["user", "assistant"]:
            raise ValueError("messages must end with one of the user and the assistant's answer")
        return self

    def convert(self, attribute: str) -> Row:
        """The dialogue up to the answer, and the answer."""
        return PromptCompletionRow(prompt=self.messages[:-1], completion=self.messages[-1].content)


class ResponsesForm(FileRow):
    """``{prompt, responses: [a, b]}`` with ``labels`` or ``scores`` by attribute: ours."""

    prompt: Prompt
    responses: Annotated[list[Answer], Field(min_length=2, max_length=2)]
    labels: Annotated[dict[AttributeName, Label | None], Field(min_length=1, max_length=MAX_ATTRIBUTES)] | None = None
    scores: Annotated[dict[AttributeName, ScorePair], Field(min_length=1, max_length=MAX_ATTRIBUTES)] | None = None

    @model_validator(mode="after")
    def _is_judged_once(self) -> Self:
        if (self.labels is None) == (self.scores is None):
            raise ValueError("needs either labels or scores")
        return self

    def convert(self, attribute: str) -> Row:
        """The pair, with scores as labels."""
        return _pair(self.prompt, self.responses, self.labels or _labels_by_attribute(self.scores or {}))


class ChosenRejectedForm(FileRow):
    """TRL's ``{prompt, chosen, rejected}``; without ``prompt`` it is what the two answers begin with.

    ``attribute`` says what the choice is about; ``scores`` of (chosen, rejected) by attribute replace the choice.
    """

    prompt: Prompt | None = None
    chosen: TextOrDialogue
    rejected: TextOrDialogue
    attribute: AttributeName | None = None
    scores: Annotated[dict[AttributeName, ScorePair], Field(min_length=1, max_length=MAX_ATTRIBUTES)] | None = None

    @property
    def needs_attribute(self) -> bool:
        """See the base."""
        return self.attribute is None and self.scores is None

    @model_validator(mode="after")
    def _answers_follow_a_prompt(self) -> Self:
        self._parts()
        return self

    def convert(self, attribute: str) -> Row:
        """The pair, the chosen answer first."""
        labels: dict[str, int | None] = {self.attribute or attribute: 0}
        prompt, *responses = self._parts()
        return _pair(prompt, responses, _labels_by_attribute(self.scores) if self.scores else labels)

    def _parts(self) -> tuple[Any, str, str]:
        """(prompt, chosen, rejected), the answers as text."""
        prompt, chosen, rejected = self.prompt, self.chosen, self.rejected
        if prompt is None:
            size = _shared_prefix(chosen, rejected)
            prompt, chosen, rejected = chosen[:size], chosen[size:], rejected[size:]
        return prompt, _text_of("chosen", chosen), _text_of("rejected", rejected)


class RatedAnswerForm(FileRow):
    """TRL's ``{prompt, completion, label}``, or ``scores`` by attribute in the place of ``label``."""

    prompt: Prompt
    completion: Answer
    label: bool | None = None
    attribute: AttributeName | None = None
    scores: Annotated[dict[AttributeName, Score], Field(min_length=1, max_length=MAX_ATTRIBUTES)] | None = None

    @property
    def needs_attribute(self) -> bool:
        """See the base."""
        return self.attribute is None and self.scores is None

    @model_validator(mode="after")
    def _is_judged_once(self) -> Self:
        if (self.label is None) == (self.scores is None):
            raise ValueError("needs either label or scores")
        return self

    def convert(self, attribute: str) -> Row:
        """The answer with scores; a label counts as 0 or 1."""
        scores = self.scores or {self.attribute or attribute: float(bool(self.label))}
        return RatedAnswer(prompt=self.prompt, completion=self.completion, scores=scores)


@dataclass(frozen=True)
class Form:
    """A form's name, its model, and the sets of columns that give it away."""

    format: DatasetFormat
    model: type[FileRow]
    signatures: tuple[frozenset[str], ...]


def _form(format: DatasetFormat, model: type[FileRow], *signatures: str) -> Form:
    return Form(format, model, tuple(frozenset(columns.split()) for columns in signatures))


FORMS = (
    _form("messages", MessagesForm, "messages"),
    _form("preference", ResponsesForm, "responses"),
    _form("preference", ChosenRejectedForm, "chosen", "rejected"),
    _form("unpaired_preference", RatedAnswerForm, "completion label", "completion scores"),
    _form("prompt_completion", PromptCompletionForm, "completion"),
    _form("lexicon", LexiconForm, "attributes"),
    _form("prompt", PromptForm, ""),
)
"""The first that fits counts; the last fits everything."""


def detect_form(columns: Mapping[str, Any]) -> Form:
    """The form that a row's columns show."""
    return next(form for form in FORMS if any(signature <= columns.keys() for signature in form.signatures))


def is_conversational(columns: Mapping[str, Any]) -> bool | None:
    """Whether a row's texts are lists of messages; None where some are and some are not."""
    texts = [columns[name] for name in _TEXT_COLUMNS if columns.get(name) is not None]
    responses = columns.get("responses")
    kinds = {isinstance(text, list) for text in (*texts, *(responses if isinstance(responses, list) else ()))}
    return None if len(kinds) > 1 else kinds == {True}


def labels_from_scores(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, int | None]:
    """Which of two answers is better, by each attribute that both have a score for: the higher one, None for a tie."""
    shared = [name for name in first if name in second]
    return {name: None if first[name] == second[name] else int(second[name] > first[name]) for name in shared}


def _labels_by_attribute(scores: Mapping[str, list[float]]) -> dict[str, int | None]:
    first, second = ({name: pair[index] for name, pair in scores.items()} for index in (0, 1))
    return labels_from_scores(first, second)


def _pair(prompt: Any, responses: list[str], labels: Mapping[str, int | None]) -> PreferenceRow:
    """Nothing can be learned from two answers that are the same: a tie in everything."""
    same = responses[0] == responses[1]
    return PreferenceRow(
        prompt=prompt, responses=responses, labels=dict.fromkeys(labels, None) if same else dict(labels)
    )


def _shared_prefix(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """How much of both is the prompt: the messages they share, or the text before the word in which they part."""
    together = zip(chosen, rejected, strict=False)
    size = next((index for index, (a, b) in enumerate(together) if a != b), min(len(chosen), len(rejected)))
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
