"""Forms of prompts and of single answers: dialogues, instructions, questions, scorers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AliasChoices, Field
from pydantic_core import PydanticCustomError

from armature.contracts.datasets import Lexicon, PromptCompletionRow, PromptRow, Row, Text
from armature.datasets.forms.base import AskedRow, FileRow, Maybe
from armature.datasets.forms.notes import Notes
from armature.datasets.forms.texts import FileAnswer, FileDialogue, messages_of, prompt_of, turns_of, without_prompt

ANSWERS = ("completion", "response", "output", "answer", "target", "Target")
"""Columns that answer."""


class PromptForm(AskedRow):
    """A prompt alone."""

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow."""
        return [PromptRow(prompt=self.asked())]


class QuestionsForm(FileRow):
    """MT-Bench: ``turns``, the questions of a dialogue whose answers do not exist yet."""

    turns: list[Text] = Field(min_length=1)

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow; later questions need an answer to the first."""
        notes["later_turns"] += len(self.turns) - 1
        return [PromptRow(prompt=self.turns[0])]


class CompletionForm(AskedRow):
    """A prompt and its answer: TRL, Alpaca (``instruction``, ``input``, ``output``), GSM8K, AdvBench."""

    completion: FileAnswer = Field(validation_alias=AliasChoices(*ANSWERS))

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow."""
        (completion,) = without_prompt(self.question(), self.completion, notes=notes)
        return [PromptCompletionRow(prompt=self.asked(), completion=completion)]


class DollyForm(CompletionForm):
    """Dolly: Alpaca's form with ``context`` for ``input``."""

    input: Annotated[Text | None, Maybe] = Field(None, validation_alias="context")


class MessagesForm(FileRow):
    """A dialogue whose last message, the assistant's, is the completion: OpenAI, tulu, ShareGPT, Capybara."""

    messages: FileDialogue = Field(validation_alias=AliasChoices("messages", "conversations", "conversation"))
    system: Annotated[str | None, Maybe] = Field(None, validation_alias=AliasChoices("system", "system_prompt"))

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow."""
        if [message.role for message in self.messages[-2:]] != ["user", "assistant"]:
            raise PydanticCustomError(
                "no_dialogue", "must end with a user message and the assistant's answer", {"column": "messages"}
            )
        return [
            PromptCompletionRow(prompt=prompt_of(self.messages[:-1], self.system), completion=self.messages[-1].content)
        ]


class TranscriptForm(FileRow):
    """A transcript whose last turn, the assistant's, is the completion: red-team-attempts, Guanaco."""

    text: Text = Field(validation_alias=AliasChoices("transcript", "text"))

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow."""
        turns = turns_of(self.text) or []
        if [role for role, _ in turns[-2:]] != ["user", "assistant"]:
            raise PydanticCustomError("no_answer", "must end with a turn of the user and the assistant's answer")
        if not turns[-1][1]:
            notes["empty_answers"] += 1
            return []
        return [PromptCompletionRow(prompt=messages_of(turns[:-1]), completion=turns[-1][1])]

    @classmethod
    def is_one(cls, columns: Any) -> bool:
        """Tell whether the row's text is a transcript."""
        text = columns.get("transcript") or columns.get("text")
        return isinstance(text, str) and turns_of(text) is not None


class LexiconForm(FileRow, Lexicon):
    """The lexicon of a scorer."""

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """See FileRow."""
        return [self]
