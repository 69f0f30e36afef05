"""The base of the forms of rows in files, and the questions that most of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from armature.contracts.datasets import Row
from armature.datasets.forms.notes import Notes
from armature.datasets.forms.texts import FilePrompt, prompt_of


class FileRow(Row):
    """A row as it is in the file; its fields are the columns that count, and any other is ignored."""

    columns: ClassVar[frozenset[str]] = frozenset()
    """The names of the columns that count."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        aliases = {name: field.validation_alias or name for name, field in cls.model_fields.items()}
        choices = (alias.choices if isinstance(alias, AliasChoices) else [alias] for alias in aliases.values())
        cls.columns = frozenset(choice for names in choices for choice in names if isinstance(choice, str))

    @property
    def needs_attribute(self) -> bool:
        """Whether the row has a label for which it names no attribute."""
        return False

    def rows(self, attribute: str, notes: Notes) -> Sequence[Row]:
        """Convert to the rows that jobs use.

        Args:
            attribute: That of a label without one.
            notes: Counts what is left out or changed.

        Raises:
            PydanticCustomError: The columns contradict each other.
        """
        raise NotImplementedError


QUESTIONS = ("prompt", "question", "Question", "query", "goal", "Goal", "Behavior", "trajectory", "history")
"""Columns that ask."""


def _or_none(value: Any) -> Any:
    return value or None


Maybe = BeforeValidator(_or_none)
"""Marks a column whose empty text means that there is none."""


class AskedRow(FileRow):
    """A row with a question, or Alpaca's instruction and input, behind a system message."""

    prompt: FilePrompt | None = Field(None, validation_alias=AliasChoices(*QUESTIONS))
    instruction: FilePrompt | None = None
    input: Annotated[FilePrompt | None, Maybe] = None
    system: Annotated[str | None, Maybe] = Field(None, validation_alias=AliasChoices("system", "system_prompt"))

    def asked(self) -> Any:
        """Return the prompt.

        Raises:
            PydanticCustomError: The row has none.
        """
        question = self.question()
        if question is None:
            raise PydanticCustomError("missing", "Field required", {"column": "prompt"})
        return prompt_of(question, self.system)

    def question(self) -> Any:
        """Return the question without the system message, None if the row has none."""
        if self.prompt is not None:
            return self.prompt
        if isinstance(self.instruction, str) and isinstance(self.input, str):
            return f"{self.instruction}\n\n{self.input}"
        return self.instruction if self.instruction is not None else self.input
