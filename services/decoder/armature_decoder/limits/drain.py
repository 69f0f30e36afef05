"""How many requests are being answered, and whether new ones still are."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from armature.errors import Unavailable


@dataclass
class Traffic:
    """Counts requests in and out. Once it is closed nobody new comes in."""

    inside: int = 0
    is_open: bool = True
    _empty: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self) -> None:
        """One request more.

        Raises:
            Unavailable: It is closed; another decoder may answer.
        """
        if not self.is_open:
            raise Unavailable("this decoder is shutting down", code="shutting_down")
        self.inside += 1

    def leave(self) -> None:
        """One that entered is answered."""
        self.inside -= 1
        if not self.inside:
            self._empty.set()

    async def close(self, seconds: float) -> None:
        """Let nobody new in; returns when everybody is out, and at the latest after so many seconds."""
        self.is_open = False
        if self.inside:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), seconds)
            except TimeoutError:
                return
