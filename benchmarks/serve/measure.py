"""Runs ``python -m benchmarks serve``: the servers in turns, the swaps, and the report."""

from __future__ import annotations

import asyncio
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.pairing import Times, p95, percentile, ratio, spread
from benchmarks.plan import ServePlan
from benchmarks.report import describe_machine
from benchmarks.serve.figures import describe, describe_waiting, saturated_throughput
from benchmarks.serve.installation import Installation
from benchmarks.serve.load import Answer, Arrival, arrivals, describe_load, play
from benchmarks.serve.servers import MODULES, decoder_process
from benchmarks.shapes import choose_device, choose_dtype

_PEERS = ("static", "early_exit")
_SHORT_TURN = 4
"""Divides the requests of a turn whose load every server can take."""
_PAIRS = 2
_BATCHES = 10
"""Full batches of requests sent at once to saturate a server."""
_SWAP_SECONDS = 120.0
"""A swap has failed if the new version has not answered after this time."""
_POLL_SECONDS = 0.05


def measure(plan: ServePlan, folder: Path, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run the benchmark in a scratch folder.

    Returns:
        Machine, model and load, the figures, and the measurements behind them.

    Raises:
        RuntimeError: A server did not start, a request failed outside the swaps, or a swap timed out.
    """
    device = choose_device(plan.device)
    dtype = choose_dtype(plan.dtype, device)
    installation = Installation(folder / "store")
    sizes = [installation.publish_pair(folder / f"pair-{n}", plan.size, getattr(torch, dtype)) for n in range(_PAIRS)]
    installation.point()
    with ExitStack() as own, ExitStack() as peers:
        urls = {
            batching: (peers if batching in _PEERS else own).enter_context(
                decoder_process(folder, batching, plan, installation.token)
            )
            for batching in MODULES
        }
        contest = _Contest(plan, installation, urls, progress)
        saturated = contest.saturate()
        half, half_static = (saturated[batching]["requests_per_second"] / 2 for batching in ("continuous", "static"))
        short = math.ceil(plan.requests / _SHORT_TURN)
        compared = {
            "half_load": contest.compare_at(half, plan.requests),
            "half_static_load": contest.compare_at(half_static, short),
        }
        peers.close()  # else the peers load every version too, on the same cores
        swap = contest.swap(half_static, short)
    return {
        "machine": describe_machine(device),
        "model": {"size": plan.size, "parameters": sizes[0], "dtype": dtype, "slots": plan.slots},
        "load": describe_load(),
        **{f"continuous_over_{peer}": saturated["over"][peer]["ratio"] for peer in _PEERS},
        **{f"p95_{load}_over_{peer}": compared[load]["over"][peer]["ratio"] for load in compared for peer in _PEERS},
        "swap": swap,
        "saturated": saturated,
        **compared,
    }


@dataclass
class _Contest:
    """The servers, which are loaded in turns; the others idle meanwhile."""

    plan: ServePlan
    installation: Installation
    urls: dict[str, str]
    progress: Callable[[str], None]
    seeds: Iterator[int] = field(default_factory=itertools.count)

    def saturate(self) -> dict[str, Any]:
        """Measure the throughput of each server on a backlog that is sent at once."""
        self._turns(lambda trace: itertools.islice(trace, self.plan.slots), math.inf, rounds=1)  # warm-up
        turns = self._turns(
            lambda trace: itertools.islice(trace, _BATCHES * self.plan.slots), math.inf, self.plan.rounds
        )
        speeds = {batching: [saturated_throughput(turn) for turn in of] for batching, of in turns.items()}
        per_token: Times = {batching: [1 / speed for speed in of] for batching, of in speeds.items()}
        over = {
            peer: {"ratio": ratio(per_token, peer, "continuous"), "quartiles": spread(per_token, peer, "continuous")}
            for peer in _PEERS
        }
        report: dict[str, Any] = {"over": over}
        for batching, of in turns.items():
            speed = statistics.median(speeds[batching])
            length = statistics.mean(len(answer.tokens) for turn in of for answer in turn)
            report[batching] = {
                "tokens_per_second": round(speed, 1),
                "requests_per_second": round(speed / length, 3),
            }
        self.progress(f"saturated: {report}")
        return report

    def compare_at(self, rate: float, requests: int) -> dict[str, Any]:
        """Measure each server's latency under Poisson arrivals of ``rate`` requests per second."""
        turns = self._turns(lambda trace: itertools.islice(trace, requests), rate, self.plan.rounds)
        tails = {batching: [p95([answer.latency for answer in turn]) for turn in of] for batching, of in turns.items()}
        answers = {batching: list(itertools.chain(*of)) for batching, of in turns.items()}
        pooled = {batching: [p95([answer.latency for answer in of])] for batching, of in answers.items()}
        over = {
            peer: {"ratio": ratio(pooled, "continuous", peer), "quartiles": spread(tails, "continuous", peer)}
            for peer in _PEERS
        }
        waiting = {batching: describe_waiting(of) for batching, of in answers.items()}
        report = {"requests_per_second": round(rate, 3), "over": over, **waiting}
        self.progress(f"{rate:.3f} requests per second: {report}")
        return report

    def swap(self, rate: float, requests: int) -> dict[str, Any]:
        """Swap the live pair repeatedly under load; steady turns before and after are the reference."""
        before, during, after = (arrivals(self.installation, rate, next(self.seeds)) for _ in range(3))
        steady = self._play("continuous", itertools.islice(before, requests))
        answers, begin, end = asyncio.run(self._swapping(during))
        steady += self._play("continuous", itertools.islice(after, requests))
        usual = [gap for answer in steady for gap in answer.gaps()]
        gaps = [gap for answer in answers for gap in answer.gaps(begin, end)]
        report = {
            "failed_requests": sum(bool(answer.failure) for answer in answers),
            "p99_itl_over_steady": round(percentile(gaps, 99) / percentile(usual, 99), 4),
            "swaps": self.plan.swaps,
            "requests": len(answers),
            "seconds_per_swap": round((end - begin) / self.plan.swaps, 3),
            "steady_itl_ms": describe(usual),
            "itl_ms": describe(gaps),
        }
        self.progress(f"swap: {report}")
        return report

    async def _swapping(self, trace: Iterable[Arrival]) -> tuple[list[Answer], float, float]:
        """Return all answers, the time of the first swap's begin and of the last swap's end."""
        answers: list[Answer] = []
        over = asyncio.Event()
        until_over = itertools.takewhile(lambda arrival: not over.is_set(), trace)
        load = asyncio.create_task(play(self.urls["continuous"], self.installation.token, until_over, answers))
        try:
            await _answered_by(self.installation.version, answers)
            begin = time.perf_counter()
            for _ in range(self.plan.swaps):
                version = await asyncio.to_thread(self.installation.point)  # the write must not block the clients
                await _answered_by(version, answers)
            end = time.perf_counter()
        finally:
            over.set()
            await load
        return answers, begin, end

    def _turns(
        self, take: Callable[[Iterable[Arrival]], Iterable[Arrival]], rate: float, rounds: int
    ) -> dict[str, list[list[Answer]]]:
        """Load the servers in turns, all with the same requests in a round; return answers by round."""
        turns: dict[str, list[list[Answer]]] = {batching: [] for batching in self.urls}
        for number in range(rounds):
            seed = next(self.seeds)
            for batching in list(turns)[:: -1 if number % 2 else 1]:
                turns[batching].append(self._play(batching, take(arrivals(self.installation, rate, seed))))
        return turns

    def _play(self, batching: str, trace: Iterable[Arrival]) -> list[Answer]:
        answers: list[Answer] = []
        asyncio.run(play(self.urls[batching], self.installation.token, trace, answers))
        if failures := [answer.failure for answer in answers if answer.failure]:
            raise RuntimeError(f"{len(failures)} of {len(answers)} requests failed, the first with: {failures[0]}")
        return answers


async def _answered_by(version: int, answers: list[Answer]) -> None:
    deadline = time.monotonic() + _SWAP_SECONDS
    while not any(answer.version == version for answer in answers):
        if time.monotonic() > deadline:
            raise RuntimeError(f"version {version} did not answer within {_SWAP_SECONDS:g} s")
        await asyncio.sleep(_POLL_SECONDS)
