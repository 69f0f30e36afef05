"""Rows as jobs use them: one type per use, whatever the file's format.

:mod:`armature.datasets.forms` converts a file's rows to these types.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from armature.contracts.base import Contract
from armature.contracts.preferences import AttributeName

MAX_ATTRIBUTES = 64
"""Largest number of attributes that a data set may have labels for."""
Text = Annotated[str, Field(min_length=1, max_length=1_000_000)]
Label = Annotated[int, Field(ge=0, le=1)]
"""Index of the better response. A ``Literal[0, 1]`` would take ``true`` and ``0.0`` too: they compare equal."""
Score = Annotated[float, Field(ge=-1e6, le=1e6)]
"""Rating of an answer in an attribute; only the order of two scores counts, not their size."""


class Row(Contract):
    """Base of the rows. Unknown columns are ignored, as in TRL."""

    model_config = ConfigDict(extra="ignore")


class Message(Row):
    """A message of a dialogue."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text


def _ends_with_the_user(dialogue: tuple[Message, ...]) -> tuple[Message, ...]:
    if dialogue[-1].role != "user":
        raise ValueError("a prompt must end with a message of the user")
    return dialogue


def _answer_text(answer: Any) -> Any:
    """Return the text of an answer in TRL's conversational form; anything else unchanged."""
    match answer:
        case [{"role": "assistant", "content": content}]:
            return content
        case list():
            raise ValueError("an answer given as messages must be one message of the assistant")
    return answer


def text_or_dialogue(value: Any) -> str:
    """Return the tag of :data:`Prompt` that a value is meant as."""
    return "dialogue" if isinstance(value, list | tuple) else "text"


# A tuple, so that prompts are hashable; not strict, since JSON has lists only.
Dialogue = Annotated[tuple[Message, ...], Field(min_length=1, max_length=1024, strict=False)]
TextOrDialogue = Annotated[
    Annotated[Text, Tag("text")] | Annotated[Dialogue, Tag("dialogue")], Discriminator(text_or_dialogue)
]
Prompt = Annotated[
    Annotated[Text, Tag("text")] | Annotated[Dialogue, AfterValidator(_ends_with_the_user), Tag("dialogue")],
    Discriminator(text_or_dialogue),
]
"""A text is short for one message of the user."""
Answer = Annotated[Text, BeforeValidator(_answer_text)]


class PromptRow(Row):
    """TRL's prompt-only type."""

    prompt: Prompt


class PromptCompletionRow(Row):
    """TRL's prompt-completion type, also that of harmful pairs."""

    prompt: Prompt
    completion: Answer


class PreferenceRow(Row):
    """Two responses and a label per attribute: the index of the better one, or null for a tie (no loss)."""

    prompt: Prompt
    responses: Annotated[list[Text], Field(min_length=2, max_length=2)]
    labels: Annotated[dict[AttributeName, Label | None], Field(min_length=1, max_length=MAX_ATTRIBUTES)]


class RatedAnswer(Row):
    """One answer and its score per attribute; two of the same prompt make a :class:`PreferenceRow`."""

    prompt: Prompt
    completion: Answer
    scores: dict[AttributeName, Score]


Pattern = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^\S+( \S+)*$")]


class Lexicon(Row):
    """A deterministic scorer (one object in the file): sentence patterns per attribute.

    A pattern is a sentence of words separated by single spaces; ``*`` matches one word. An answer is split into
    sentences at ``.``, ``!`` and ``?``. ``score_i`` = distinct patterns of attribute i / sentences. A sentence that
    matches a harm pattern or contains a harm cue word makes the answer harmful; one that matches no pattern at all is
    malformed.
    """

    attributes: dict[AttributeName, list[Pattern]] = Field(min_length=1)
    harm: list[Pattern] = Field(default_factory=list)
    harm_cues: list[Annotated[str, Field(pattern=r"^\S+$")]] = Field(default_factory=list)
    refusal: list[Pattern] = Field(default_factory=list)
    neutral: list[Pattern] = Field(default_factory=list)


DatasetUse = Literal["prompt", "prompt_completion", "preference", "lexicon"]
"""The row types that jobs ask for."""
ROWS: dict[DatasetUse, type[Row]] = {
    "prompt": PromptRow,
    "prompt_completion": PromptCompletionRow,
    "preference": PreferenceRow,
    "lexicon": Lexicon,
}
DatasetFormat = Literal["prompt", "prompt_completion", "messages", "preference", "unpaired_preference", "lexicon"]
"""The formats of files: TRL's dataset types under short names, and ``lexicon``."""
USABLE_AS: Mapping[DatasetFormat, tuple[DatasetUse, ...]] = {
    "prompt": ("prompt",),
    "prompt_completion": ("prompt_completion", "prompt"),
    "messages": ("prompt_completion", "prompt"),
    "preference": ("preference", "prompt"),
    "unpaired_preference": ("preference", "prompt"),
    "lexicon": ("lexicon",),
}
BadRows = Literal["refuse", "skip"]
"""What a bad row does to a file: refuse it, or be left out and counted."""
UNNAMED_ATTRIBUTE = "overall"
"""The attribute of pairs for which neither row nor data set names one."""
