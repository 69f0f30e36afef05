"""Scheduling: which requests wait, prefill and run. Bookkeeping alone, no tensors.

A free slot goes to the tenant that holds the fewest, in turn among equals, and no tenant may fill the queue, so a burst
of one tenant delays no other; within a tenant, first come, first served. Prompts are prefilled between the batch's
steps, a chunk at a time, so that no next token waits for a whole long prompt. Long prompts take turns with each other
and with later ones, unless these share a prefix with them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from armature.inference.kv_memory import KvMemory
from armature.inference.request import GuidedRequest, StreamCount
from armature_decoder.engine.request import Cohort, EngineRequest


@dataclass(frozen=True)
class KvBudget:
    """Bytes for keys and values: at most ``limit`` for all requests of a batch and those that join it."""

    memory: KvMemory
    limit: int

    def fits(self, running: Sequence[GuidedRequest], joining: Sequence[GuidedRequest]) -> bool:
        """Tell whether all of them can grow to their full length."""
        return self.needed(running, joining) <= self.limit

    def needed(self, running: Sequence[GuidedRequest], joining: Sequence[GuidedRequest]) -> int:
        """Count bytes at full length; prompts of joining requests have caches of their own."""
        requests = [*running, *joining]
        counts = [request.stream_count for request in requests]
        prompts, streams = sum(count.prompts for count in counts), sum(count.streams for count in counts)
        batch = self.memory.needed(prompts, streams, max((request.length for request in requests), default=0))
        return batch + sum(self._own_cache(request.stream_count, request.longest_prompt) for request in joining)

    def context_of(self, streams: StreamCount, longest_prompt: int = 0) -> int:
        """Positions that each stream of a request may grow to while it is alone, with prompts of that length."""
        return self.memory.longest(*streams, self.limit - self._own_cache(streams, longest_prompt))

    def _own_cache(self, streams: StreamCount, longest_prompt: int) -> int:
        """Bytes of a request's prompts while they are computed."""
        return self.memory.needed(*streams, longest_prompt)


class Scheduler:
    """The requests that wait, join and run.

    The waiting ones are kept by tenant, the running ones in the order of the batch's slots.

    Args:
        max_slots: Most requests that run or join side by side.
        max_waiting: Most requests that wait. A tenant may have as many as places are left: alone half of them, an equal
            share where many compete, and a new tenant always finds some.
        chunk: Prompt tokens to prefill between two steps.
        budget: Bytes that the running and the joining requests share; None: no bound.
    """

    def __init__(self, max_slots: int, max_waiting: int, chunk: int = 256, budget: KvBudget | None = None) -> None:
        self._max_slots = max_slots
        self._max_waiting = max_waiting
        self._waiting: OrderedDict[str, deque[EngineRequest]] = OrderedDict()
        self._joining: deque[Cohort] = deque()
        self._current: Cohort | None = None
        self._budget = budget
        self.chunk = chunk
        self.running: list[EngineRequest] = []

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a slot."""
        return sum(map(len, self._waiting.values()))

    @property
    def joining(self) -> int:
        """The number of requests with a slot and no token yet."""
        return len(self._all_joining())

    @property
    def kv_usage(self) -> float:
        """The share of the budget that is reserved; 0 without one."""
        if self._budget is None:
            return 0.0
        placed = [[one.sequence for one in requests] for requests in (self.running, self._all_joining())]
        return self._budget.needed(*placed) / self._budget.limit

    @property
    def idle(self) -> bool:
        """Whether no request runs, joins or waits."""
        return not (self.running or self._all_joining() or self._waiting)

    def room_for(self, counts: Mapping[str, int]) -> bool:
        """Tell whether so many more requests of each tenant may wait."""
        left = self._max_waiting - self.waiting - sum(counts.values())
        return all(len(self._waiting.get(tenant, ())) <= left for tenant in counts)

    def add(self, request: EngineRequest) -> None:
        """Append a request to its tenant's queue."""
        self._waiting.setdefault(request.tenant, deque()).append(request)

    def admit(self) -> None:
        """Let waiting requests join while there is room, in cohorts whose prompts together fit into a chunk.

        A request that finds no room keeps its place and none overtakes it, or a large one might wait for ever.
        """
        cohort, tokens = Cohort([]), 0
        while self._waiting and self._has_room(self._waiting[tenant := self._next_tenant()][0]):
            request = self._pop(tenant)
            tokens += request.sequence.prompt_tokens
            alone = request.sequence.score_prompt
            if alone or not cohort.requests or tokens > self.chunk:
                cohort, tokens = Cohort([]), request.sequence.prompt_tokens
                self._joining.append(cohort)
            cohort.requests.append(request)
            tokens += self.chunk if alone else 0

    def next_cohort(self) -> Cohort | None:
        """Take the cohort to prefill next; :meth:`postpone`, :meth:`run` or :meth:`drop` ends its turn.

        A cohort whose prompts share a prefix with one being prefilled waits, then reuses its cached blocks.
        """
        begun = [cohort for cohort in self._joining if cohort.joining is not None]
        for cohort in self._joining:
            if cohort in begun or not any(cohort.gains_from(other) for other in begun):
                self._joining.remove(cohort)
                self._current = cohort
                return cohort
        return None

    def postpone(self, *cohorts: Cohort) -> None:
        """End the current turn and queue ``cohorts`` behind the others that join."""
        self._current = None
        self._joining.extend(cohorts)

    def run(self, cohort: Cohort) -> None:
        """End the current turn: the cohort's requests are in the batch's next slots."""
        self._current = None
        self.running += cohort.requests

    def drop(self) -> None:
        """End the current turn: its requests need nothing more."""
        self._current = None

    def discard(self, ids: Container[int]) -> None:
        """Drop requests that do not run yet; a cohort that loses one begins anew with the others."""
        for tenant, queue in list(self._waiting.items()):
            kept = deque(request for request in queue if request.id not in ids)
            if kept:
                self._waiting[tenant] = kept
            else:
                del self._waiting[tenant]
        for cohort in self._joining:
            staying = [request for request in cohort.requests if request.id not in ids]
            if len(staying) < len(cohort.requests):
                cohort.requests, cohort.joining = staying, None
        self._joining = deque(cohort for cohort in self._joining if cohort.requests)

    def retire(self, ids: Container[int]) -> list[int]:
        """Take requests out of the running ones; returns the slots to evict."""
        evicted = [slot for slot, request in enumerate(self.running) if request.id in ids]
        self.running = [request for request in self.running if request.id not in ids]
        return evicted

    def clear(self) -> list[EngineRequest]:
        """Drop every request; returns them."""
        dropped = [*self._placed(), *(self._pop(self._next_tenant()) for _ in range(self.waiting))]
        self.running, self._joining, self._current = [], deque(), None
        return dropped

    def _has_room(self, request: EngineRequest) -> bool:
        joining = [one.sequence for one in self._all_joining()]
        running = [one.sequence for one in self.running]
        if not running and not joining:
            return True
        has_slot = len(running) + len(joining) < self._max_slots
        return has_slot and (self._budget is None or self._budget.fits(running, [*joining, request.sequence]))

    def _placed(self) -> list[EngineRequest]:
        """The requests that have a slot."""
        return [*self.running, *self._all_joining()]

    def _all_joining(self) -> list[EngineRequest]:
        """The requests with a slot and no token yet. Copied first: metrics are read from other threads."""
        current = [self._current] if self._current else []
        return [request for cohort in [*current, *tuple(self._joining)] for request in cohort.requests]

    def _next_tenant(self) -> str:
        """The tenant with the fewest slots, and of equals the one whose last turn is longest ago."""
        held = Counter(request.tenant for request in self._placed())
        return min(self._waiting, key=held.__getitem__)

    def _pop(self, tenant: str) -> EngineRequest:
        """Take the tenant's first request; the tenant goes to the end of the queue."""
        queue = self._waiting.pop(tenant)
        request = queue.popleft()
        if queue:
            self._waiting[tenant] = queue
        return request
