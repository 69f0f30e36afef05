"""Lists as OpenAI's clients page through them."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from armature.contracts.base import View

Item = TypeVar("Item")


class Page(View, Generic[Item]):
    """A page of a list; pass ``last_id`` as ``after`` for the next one."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None
