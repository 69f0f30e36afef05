"""Who waits, whose prompt is computed and who runs: pure bookkeeping, no tensors.

A free slot goes to the tenant that holds the fewest, in turn among equals, and no tenant may fill the queue, so one
tenant's burst keeps others neither waiting nor out; within a tenant, first come first served. Prompts are computed
between the batch's steps, so many tokens at a time that nobody's next token has to wait for all of a long one; long
ones take turns with each other and with those that come after them, unless these begin alike.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Container, Sequence
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
        """Count the bytes of all of them at their full length; prompts of those that join have caches of their own."""
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
    """The waiting requests by tenant, those that are joining, and the running ones in the order of the batch's slots.

    Args:
        max_slots: How many may run or join side by side.
        max_waiting: How many may wait. A tenant may have as many there as places are left: alone half of them, an equal
            share where many crowd in, and newcomers always find some.
        chunk: Prompt tokens to be computed between two steps.
        budget: Of bytes that the running and the joining ones share; None: no bound.
    """

    def __init__(self, max_slots: int, max_waiting: int, chunk: int = 256, budget: KvBudget | None = None) -> None:
        self._max_slots = max_slots
        self._max_waiting = max_waiting
        self._waiting: OrderedDict[str, deque[EngineRequest]] = OrderedDict()
        self._joining: deque[Cohort] = deque()
        self._turn: Cohort | None = None
        self._budget = budget
        self.chunk = chunk
        self.running: list[EngineRequest] = []

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return sum(map(len, self._waiting.values()))

    @property
    def joining(self) -> int:
        """How many have a slot and no token yet."""
        return len(self._all_joining())

    @property
    def kv_usage(self) -> float:
        """The share of the budget that is spoken for; 0 without one."""
        if self._budget is None:
            return 0.0
        placed = [[one.sequence for one in requests] for requests in (self.running, self._all_joining())]
        return self._budget.needed(*placed) / self._budget.limit

    @property
    def idle(self) -> bool:
        """Nothing runs, joins or waits."""
        return not (self.running or self._all_joining() or self._waiting)

    def room_for(self, tenant: str, count: int) -> bool:
        """Whether that many more of a tenant may wait."""
        return len(self._waiting.get(tenant, ())) + count <= self._max_waiting - self.waiting

    def add(self, request: EngineRequest) -> None:
        """Let a request wait for its turn."""
        self._waiting.setdefault(request.tenant, deque()).append(request)

    def admit(self) -> None:
        """Let waiting requests join while there is room, in cohorts whose prompts together fit into a chunk.

        One that finds no room keeps its place: nobody overtakes it, or it might wait for ever.
        """
        cohort, tokens = Cohort([]), 0
        while self._waiting and self._has_room(self._waiting[tenant := self._next()][0]):
            request = self._pop(tenant)
            tokens += request.prompt_tokens
            alone = request.sequence.score_prompt
            if alone or not cohort.requests or tokens > self.chunk:
                cohort, tokens = Cohort([]), request.prompt_tokens
                self._joining.append(cohort)
            cohort.requests.append(request)
            tokens += self.chunk if alone else 0

    def next_cohort(self) -> Cohort | None:
        """Those whose turn it is to have their prompts computed; it ends with :meth:`postpone`, :meth:`run` or
        :meth:`drop`.

        Whoever would compute the same beginning as somebody who has begun waits until that is known.
        """
        begun = [cohort for cohort in self._joining if cohort.has_begun]
        for cohort in self._joining:
            if cohort.has_begun or not any(cohort.gains_from(other) for other in begun):
                self._joining.remove(cohort)
                self._turn = cohort
                return cohort
        return None

    def postpone(self, *cohorts: Cohort) -> None:
        """Put these behind the others that join."""
        self._turn = None
        self._joining.extend(cohorts)

    def run(self, cohort: Cohort) -> None:
        """These are in the batch's next slots from now on."""
        self._turn = None
        self.running += cohort.requests

    def drop(self) -> None:
        """Those whose turn it is need nothing more."""
        self._turn = None

    def discard(self, ids: Container[int]) -> None:
        """Forget requests that do not run yet. A cohort that loses one begins anew: its rows are computed together."""
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
        """Take requests out of the running set; returns the slots that stay, in order."""
        kept = [slot for slot, request in enumerate(self.running) if request.id not in ids]
        self.running = [self.running[slot] for slot in kept]
        return kept

    def clear(self) -> list[EngineRequest]:
        """Empty all sets and return everyone who was in them."""
        everyone = [*self._placed(), *(self._pop(self._next()) for _ in range(self.waiting))]
        self.running, self._joining, self._turn = [], deque(), None
        return everyone

    def _has_room(self, request: EngineRequest) -> bool:
        joining = [one.sequence for one in self._all_joining()]
        running = [one.sequence for one in self.running]
        if not running and not joining:
            return True
        has_slot = len(running) + len(joining) < self._max_slots
        return has_slot and (self._budget is None or self._budget.fits(running, [*joining, request.sequence]))

    def _placed(self) -> list[EngineRequest]:
        """Everyone who has a slot."""
        return [*self.running, *self._all_joining()]

    def _all_joining(self) -> list[EngineRequest]:
        """Everyone who has a slot and no token yet. Copied first: metrics are read while the engine goes on."""
        turn = [self._turn] if self._turn else []
        return [request for cohort in [*turn, *tuple(self._joining)] for request in cohort.requests]

    def _next(self) -> str:
        """The tenant whose turn it is: the one with the fewest slots, and of equals whoever had a turn longest ago."""
        held = Counter(request.tenant for request in self._placed())
        return min(self._waiting, key=held.__getitem__)

    def _pop(self, tenant: str) -> EngineRequest:
        """The tenant's first."""
        queue = self._waiting.pop(tenant)
        request = queue.popleft()
        if queue:
            self._waiting[tenant] = queue  # to the end: the next tenant's turn
        return request
