"""The engine: a thread per loaded bundle that steps the batch.

Requests join and leave between any two tokens. Between two steps it prefills at most a chunk of the prompts of joining
requests.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

from armature.errors import ArmatureError, NonFiniteLogits, RateLimited, Unavailable
from armature.inference.batch import GuidedBatch
from armature.inference.sampler import Sampled, check_defined
from armature.logging import get_logger
from armature_decoder.engine.device_lock import DeviceLock
from armature_decoder.engine.request import Cohort, EngineRequest, Event, Failed, PromptScored
from armature_decoder.engine.scheduler import Scheduler
from armature_decoder.engine.step_clock import StepClock
from armature_decoder.metrics import EngineMetrics

_log = get_logger(__name__)


class Engine:
    """Generates for many requests at once.

    :meth:`submit` and :meth:`cancel` may be called from any thread. A failure while a request joins fails that
    request alone; any other fails those that were running, and the thread goes on with those that wait. If the batch
    can not even be emptied, the engine stops: it fails all requests, and is of no further use.
    """

    def __init__(
        self,
        batch: GuidedBatch,
        scheduler: Scheduler,
        name: str,
        metrics: EngineMetrics | None = None,
        device_lock: DeviceLock | None = None,
    ) -> None:
        """``device_lock`` is shared by all engines of the device."""
        self.name = name
        self.clock = StepClock()
        self._metrics = metrics
        self._device_lock = device_lock or DeviceLock()
        self._batch = batch
        self._scheduler = scheduler
        self._changed = threading.Condition()
        self._cancelled: set[int] = set()
        self._stopping = False
        self.has_failed = False
        """Whether it has stopped by itself."""
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._scheduler.running)

    @property
    def joining(self) -> int:
        """Requests with a slot and no token yet."""
        return self._scheduler.joining

    @property
    def pending(self) -> int:
        """Requests without a token yet: those that wait for a slot, and those that join."""
        with self._changed:
            return self._scheduler.waiting + self._scheduler.joining

    @property
    def kv_usage(self) -> float:
        """The share of the bytes for keys and values that is reserved for running and joining requests."""
        return self._scheduler.kv_usage

    def submit(self, requests: Sequence[EngineRequest]) -> None:
        """Queue requests, all of them or none.

        Raises:
            RateLimited: The queue is full.
            Unavailable: The engine has stopped.
        """
        with self._changed:
            if self._stopping:
                raise self._unavailable()
            if not self._scheduler.room_for(Counter(request.tenant for request in requests)):
                raise RateLimited("too many requests wait for this model", code="queue_full")
            for request in requests:
                self._scheduler.add(request)
            self._changed.notify()

    def cancel(self, requests: Sequence[EngineRequest]) -> None:
        """End these requests before their next token, without a further event. Unknown ones are ignored."""
        with self._changed:
            self._cancelled.update(request.id for request in requests)
            self._changed.notify()

    def stop(self) -> None:
        """End the thread and fail the requests that remain. Returns when the thread has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._await_work():
                self._turn()
            self._batch.clear()
        except Exception as error:
            _log.error("engine stopped by itself", engine=self.name, exc_info=error)
            with self._changed:
                self._stopping = self.has_failed = True
        for request in self._scheduler.clear():
            self._emit(request, Failed(self._unavailable()))

    def _await_work(self) -> bool:
        """Wait for work; False: stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._cancelled or not self._scheduler.idle)
            return not self._stopping

    def _turn(self) -> None:
        """Iterate once. On a failure fail the running requests and empty the batch, whose state is unknown."""
        try:
            with self._device_lock:
                tokens = self._iterate()
        except Exception as error:
            requests = self._scheduler.running
            self._scheduler.retire({request.id for request in requests})
            self._fail(requests, error)  # first: emptying the batch may fail too
            self._batch.clear()
            return
        if tokens and self._metrics is not None:
            self._metrics.iterated(tokens)

    def _unavailable(self) -> Unavailable:
        reason = "has failed and will be loaded again" if self.has_failed else "is being unloaded"
        return Unavailable(f"the model {reason}", code="not_ready")

    def _iterate(self) -> int:
        """Drop cancelled requests, admit waiting ones, then step and prefill; return the tokens computed."""
        with self._changed:
            cancelled, self._cancelled = self._cancelled, set()
            self._scheduler.discard(cancelled)
        self._retire(cancelled)
        with self._changed:
            self._scheduler.admit()
        return self._step() + self._prefill()

    def _step(self) -> int:
        """Generate the next token of every running request; returns their number."""
        if not (requests := self._scheduler.running):
            return 0
        started = time.monotonic()
        sampled = self._batch.step()
        seconds = time.monotonic() - started
        guided = self.clock.stepped([request.sequence for request in requests], seconds)
        if self._metrics is not None:
            self._metrics.stepped(guided, seconds)
        self._deliver(requests, sampled)
        return len(requests)

    def _prefill(self) -> int:
        """Prefill a chunk of the next cohort, run it once it is complete, and return the tokens computed."""
        if (cohort := self._scheduler.next_cohort()) is None:
            return 0
        tokens = 0
        try:
            if cohort.joining is None:
                for request in cohort.requests:
                    request.began = time.monotonic()
                cohort.joining = self._batch.begin([request.sequence for request in cohort.requests])
            tokens = self._batch.advance(cohort.joining, self._scheduler.chunk)
            if cohort.joining.prefill.remaining:
                self._scheduler.postpone(cohort)
                return tokens
            if self._emit_scores(cohort.requests[0], cohort.joining.scored):
                self._scheduler.drop()
                return tokens
            sampled = self._batch.join(cohort.joining)
        except Exception as error:
            if len(cohort.requests) == 1:
                self._scheduler.drop()
                self._fail(cohort.requests, error)
            else:  # one of them is at fault: try each by itself
                self._scheduler.postpone(*(Cohort([request]) for request in cohort.requests))
            return tokens
        self._scheduler.run(cohort)
        self._deliver(cohort.requests, sampled)
        return tokens

    def _emit_scores(self, request: EngineRequest, scored: list[Sampled]) -> bool:
        """Emit the prompt's scores, if asked for; returns whether nothing else is."""
        if not request.sequence.score_prompt:
            return False
        check_defined(*scored)
        ends = request.sequence.max_tokens == 0
        self._emit(request, PromptScored(scored, "length" if ends else None))
        return ends

    def _deliver(self, requests: list[EngineRequest], sampled: list[Sampled]) -> None:
        tokens = list(zip(requests, sampled, strict=True))
        try:  # evict before the last event: a client that has its finish reason finds a free slot
            self._retire({request.id for request, token in tokens if token.finish_reason or token.undefined})
        finally:
            for request, token in tokens:
                try:
                    check_defined(token)
                    self._emit(request, token)
                except NonFiniteLogits as error:
                    self._fail([request], error)

    def _retire(self, ids: set[int]) -> None:
        """Take requests out of the running ones and the batch."""
        if evicted := self._scheduler.retire(ids):
            self._batch.evict(evicted)

    def _fail(self, requests: list[EngineRequest], error: Exception) -> None:
        if isinstance(error, ArmatureError):  # one line, without a traceback: a prompt may cause it again and again
            known = error
            _log.warning("generation failed", requests=len(requests), code=known.error_code, error=known.message)
        else:
            known = ArmatureError("generation failed")
            _log.error("generation failed", requests=len(requests), exc_info=error)
        for request in requests:
            self._emit(request, Failed(known))

    def _emit(self, request: EngineRequest, event: Event) -> None:
        try:
            request.sink(event)
        except Exception as error:  # the sink's event loop is closed: no other request may suffer
            _log.warning("request cancelled: its sink is gone", reason=type(error).__name__)
            self.cancel([request])
