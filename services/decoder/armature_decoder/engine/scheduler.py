"""Who runs and who waits: pure bookkeeping, no tensors.

Tenants take turns (round robin over those that wait), so one tenant's long queue delays another by at most one
request per turn; within a tenant, first come first served.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Container

from armature_decoder.engine.request import EngineRequest


class Scheduler:
    """The waiting requests by tenant, and the running ones in the order of the batch's slots.

    Args:
        max_slots: How many may run side by side.
        max_waiting: How many may wait.
    """

    def __init__(self, max_slots: int, max_waiting: int) -> None:
        self._max_slots = max_slots
        self._max_waiting = max_waiting
        self._waiting: OrderedDict[str, deque[EngineRequest]] = OrderedDict()
        self.running: list[EngineRequest] = []

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self.running and not self._waiting

    def room_for(self, count: int) -> bool:
        """Whether that many more may wait."""
        return self.waiting + count <= self._max_waiting

    def add(self, request: EngineRequest) -> None:
        """Let a request wait for its turn."""
        self._waiting.setdefault(request.tenant, deque()).append(request)

    def admit(self) -> list[EngineRequest]:
        """Move waiting requests into the free slots, one tenant after the other, and return them."""
        admitted: list[EngineRequest] = []
        while self._waiting and len(self.running) < self._max_slots:
            tenant, queue = self._waiting.popitem(last=False)
            admitted.append(queue.popleft())
            self.running.append(admitted[-1])
            if queue:
                self._waiting[tenant] = queue  # to the end: the next tenant's turn
        return admitted

    def discard_waiting(self, ids: Container[int]) -> None:
        """Forget waiting requests."""
        for tenant, queue in list(self._waiting.items()):
            kept = deque(request for request in queue if request.id not in ids)
            if kept:
                self._waiting[tenant] = kept
            else:
                del self._waiting[tenant]

    def retire(self, ids: Container[int]) -> list[int]:
        """Take requests out of the running set; returns the slots that stay, in order."""
        kept = [slot for slot, request in enumerate(self.running) if request.id not in ids]
        self.running = [self.running[slot] for slot in kept]
        return kept

    def clear(self) -> list[EngineRequest]:
        """Empty both sets and return everyone who was in them."""
        everyone = [*self.running, *(request for queue in self._waiting.values() for request in queue)]
        self.running, self._waiting = [], OrderedDict()
        return everyone
