"""The gate that requests pass on their way in and out, and that closes when the decoder shuts down."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from armature.errors import Unavailable


@dataclass
class DrainGate:
    """Counts the requests that are being answered; once closed it admits no more."""

    inside: int = 0
    is_open: bool = True
    _empty: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self) -> None:
        """Admit one request.

        Raises:
            Unavailable: The gate is closed; another decoder may answer.
        """
        if not self.is_open:
            raise Unavailable("this decoder is shutting down", code="shutting_down")
        self.inside += 1

    def leave(self) -> None:
        """Count one admitted request as answered."""
        self.inside -= 1
        if not self.inside:
            self._empty.set()

    async def drain(self, seconds: float) -> None:
        """Close the gate; return once no request is inside, at the latest after ``seconds``."""
        self.is_open = False
        if self.inside:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), seconds)
            except TimeoutError:
                return
