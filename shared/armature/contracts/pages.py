"""Pages of lists, in the form that OpenAI's clients iterate over."""

from __future__ import annotations

from typing import Generic, Literal, Self, TypeVar

from armature.contracts.base import View

Item = TypeVar("Item")


class Page(View, Generic[Item]):
    """A page of a list; pass ``last_id`` as ``after`` for the next one."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None

    @classmethod
    def of(cls, data: list[Item], has_more: bool, *, key: str = "id") -> Self:
        """Make a page of views; ``key`` names the field that serves as the cursor."""
        first, last = (str(getattr(data[end], key)) if data else None for end in (0, -1))
        return cls(data=data, has_more=has_more, first_id=first, last_id=last)
