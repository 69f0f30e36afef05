"""The forms of rows in files: TRL's dataset types, and Armature's own with several attributes.

Each form is a model of the file's columns, so that an error names the column as it is in the file, and converts itself
to the row that jobs use.
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
        """Whether the row has a label for which it names no attribute."""
        return False

    def convert(self, attribute: str) -> Row:
        """Convert to the row that jobs use; ``attribute`` is that of a label without one."""
        return self


class PromptForm(FileRow, PromptRow):
    """``{prompt}``."""


class PromptCompletionForm(FileRow, PromptCompletionRow):
    """``{prompt, completion}``."""


class LexiconForm(FileRow, Lexicon):
    """The lexicon of a scorer."""


class MessagesForm(FileRow):
    """``{messages}``: a dialogue whose last message, the assistant's, is the completion."""

    messages: Dialogue

    @model_validator(mode="after")
    def _has_an_answer(self) -> Self:
        if [message.role for message in self.messages[-2:]] != ["user", "assistant"]:
            raise ValueError("messages must end with a user message and the assistant's answer")
        return self

    def convert(self, attribute: str) -> Row:
        """Split the dialogue into prompt and completion."""
        return PromptCompletionRow(prompt=self.messages[:-1], completion=self.messages[-1].content)


class ResponsesForm(FileRow):
    """Armature's ``{prompt, responses: [a, b]}`` with ``labels`` or ``scores`` by attribute."""

    prompt: Prompt
    responses: Annotated[list[Answer], Field(min_length=2, max_length=2)]
    labels: Annotated[dict[AttributeName, Label | None], Field(min_length=1, max_length=MAX_ATTRIBUTES)] | None = None
    scores: Annotated[dict[AttributeName, ScorePair], Field(min_length=1, max_length=MAX_ATTRIBUTES)] | None = None

    @model_validator(mode="after")
    def _has_labels_or_scores(self) -> Self:
        if (self.labels is None) == (self.scores is None):
            raise ValueError("needs either labels or scores")
        return self

    def convert(self, attribute: str) -> Row:
        """Convert to a pair, with scores turned into labels."""
        return _pair(self.prompt, self.responses, self.labels or _labels_by_attribute(self.scores or {}))


class ChosenRejectedForm(FileRow):
    """TRL's ``{prompt, chosen, rejected}``; a missing ``prompt`` is the answers' common prefix.

    ``attribute`` is that of the choice; ``scores`` of (chosen, rejected) by attribute replace the choice.
    """

    prompt: Prompt | None = None
    chosen: TextOrDialogue
    rejected: TextOrDialogue
    attribute: AttributeName | None = None
    scores: Annotated[dict[AttributeName, ScorePair], Field(min_length=1, max_length=MAX_ATTRIBUTES)] | None = None

    @property
    def needs_attribute(self) -> bool:
        """Whether the choice names no attribute."""
        return self.attribute is None and self.scores is None

    @model_validator(mode="after")
    def _answers_follow_a_prompt(self) -> Self:
        self._parts()
        return self

    def convert(self, attribute: str) -> Row:
        """Convert to a pair, the chosen answer first."""
        labels: dict[str, int | None] = {self.attribute or attribute: 0}
        prompt, *responses = self._parts()
        return _pair(prompt, responses, _labels_by_attribute(self.scores) if self.scores else labels)

    def _parts(self) -> tuple[Any, str, str]:
        """Return (prompt, chosen, rejected), the answers as text."""
        prompt, chosen, rejected = self.prompt, self.chosen, self.rejected
        if prompt is None:
            size = _shared_prefix(chosen, rejected)
            prompt, chosen, rejected = chosen[:size], chosen[size:], rejected[size:]
        return prompt, _text_of("chosen", chosen), _text_of("rejected", rejected)


class RatedAnswerForm(FileRow):
    """TRL's ``{prompt, completion, label}``, or ``scores`` by attribute instead of ``label``."""

    prompt: Prompt
    completion: Answer
    label: bool | None = None
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

    def convert(self, attribute: str) -> Row:
        """Convert to an answer with scores; a label becomes 0 or 1."""
        scores = self.scores or {self.attribute or attribute: float(bool(self.label))}
        return RatedAnswer(prompt=self.prompt, completion=self.completion, scores=scores)


@dataclass(frozen=True)
class Form:
    """A form: its format, its model, and the sets of columns that identify it."""

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
"""The first match is taken; the last matches every row."""


def detect_form(columns: Mapping[str, Any]) -> Form:
    """Return the form that a row's columns identify."""
    return next(form for form in FORMS if any(signature <= columns.keys() for signature in form.signatures))


def is_conversational(columns: Mapping[str, Any]) -> bool | None:
    """Tell whether a row's texts are lists of messages; None if only some are."""
    texts = [columns[name] for name in _TEXT_COLUMNS if columns.get(name) is not None]
    responses = columns.get("responses")
    kinds = {isinstance(text, list) for text in (*texts, *(responses if isinstance(responses, list) else ()))}
    return None if len(kinds) > 1 else kinds == {True}


def labels_from_scores(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, int | None]:
    """Label two answers in each attribute scored in both: the index of the higher score, None for a tie."""
    shared = [name for name in first if name in second]
    return {name: None if first[name] == second[name] else int(second[name] > first[name]) for name in shared}


def _labels_by_attribute(scores: Mapping[str, list[float]]) -> dict[str, int | None]:
    first, second = ({name: pair[index] for name, pair in scores.items()} for index in (0, 1))
    return labels_from_scores(first, second)


def _pair(prompt: Any, responses: list[str], labels: Mapping[str, int | None]) -> PreferenceRow:
    """Build a pair; two equal answers are a tie in every attribute, as they carry no preference."""
    same = responses[0] == responses[1]
    return PreferenceRow(
        prompt=prompt, responses=responses, labels=dict.fromkeys(labels, None) if same else dict(labels)
    )


def _shared_prefix(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """Return the length of the common prompt: shared messages, or the text before the first other word."""
    aligned = zip(chosen, rejected, strict=False)
    size = next((index for index, (a, b) in enumerate(aligned) if a != b), min(len(chosen), len(rejected)))
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
