"""How dialogues are written with a model's chat template: its variables, its turns, its date."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from armature.contracts.base import Contract

TEMPLATE_DATE = "2025-01-01"
"""What a template that asks for the date gets by default: the same prompt has the same ids on every day."""

_RESERVED = frozenset(
    {"messages", "add_generation_prompt", "continue_final_message", "chat_template", "documents", "tools"}
    | {"raise_exception", "strftime_now", "namespace", "dict", "range"}
)


def _is_a_setting(name: str) -> str:
    if name in _RESERVED or name.endswith("_token"):
        raise ValueError("is set by the platform")
    return name


def _is_a_date(text: str) -> str:
    datetime.date.fromisoformat(text)
    return text


TemplateVariable = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$"), AfterValidator(_is_a_setting)]
TemplateValue = bool | int | float | Annotated[str, Field(max_length=4096)]


class ChatFormat(Contract):
    """How a model's chat template is used; the same in training, evaluation and serving."""

    template_kwargs: dict[TemplateVariable, TemplateValue] = Field(
        default_factory=dict, max_length=16, description="the template's own variables, such as enable_thinking"
    )
    turns: Literal["as_sent", "alternating"] = Field(
        "as_sent",
        description="alternating: system messages are put before the user's next message, and neighbours of one role "
        "are joined, for templates that refuse them",
    )
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$"), AfterValidator(_is_a_date)] = Field(
        TEMPLATE_DATE, description="what a template that asks for the date is told"
    )

    def as_subject(self) -> dict[str, Any] | None:
        """Return the settings as reports name them, by which gates compare; None: all are the defaults."""
        return None if self == AS_SENT else self.model_dump(mode="json")


AS_SENT = ChatFormat()
