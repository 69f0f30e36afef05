"""Requests as streams in a runner, the way most tests want them: a safe stream each, and an ARM stream if guided."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch

from armature.inference.runner import ModelRunner, Prefill, Read, staying
from armature.inference.stream import Stream


class TwinLogits(NamedTuple):
    """Logits of requests by stream, (S, V) each; ``arm`` repeats ``safe`` without a guide."""

    safe: torch.Tensor
    arm: torch.Tensor


class TwinRows:
    """A runner seen by request: safe and ARM stream of each, as a batch arranges them."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.guided: list[bool] = []

    def __len__(self) -> int:
        return len(self.guided)

    def begin(
        self, requests: Sequence[tuple[Sequence[int], Sequence[float] | None, str | None]], every_position: bool = False
    ) -> Prefill:
        streams = [stream for one in requests for stream in twin_streams(*one)]
        return self.runner.prefill(streams, every_position=every_position)

    def compute(self, prefill: Prefill, chunk: int = sys.maxsize) -> TwinLogits:
        while prefill.remaining:
            self.runner.extend(prefill, chunk)
        return self.logits_of(prefill)

    def join(self, prefill: Prefill) -> None:
        self.runner.join(prefill)
        self.guided += _guided(prefill.streams)

    def logits_of(self, prefill: Prefill) -> TwinLogits:
        assert prefill.logits is not None
        return _twins(prefill.logits, _guided(prefill.streams))

    def step(self, tokens: torch.Tensor) -> TwinLogits:
        return _twins(self.runner.decode(self.feed(tokens)), self.guided)

    def read(self, tokens: torch.Tensor, reads: Sequence[Read]) -> torch.Tensor:
        return self.runner.decode(self.feed(tokens), reads)

    def feed(self, tokens: torch.Tensor) -> torch.Tensor:
        counts = torch.tensor([1 + guided for guided in self.guided], device=tokens.device)
        return tokens.repeat_interleave(counts)

    def keep(self, slots: Sequence[int]) -> None:
        rows, leaving = rows_of(self.guided), staying(len(self), slots)
        self.runner.evict([row for slot in leaving for row in rows[slot]])
        self.guided = [self.guided[slot] for slot in slots]


def twin_streams(
    prompt: Sequence[int], preference: Sequence[float] | None = None, namespace: str | None = None
) -> list[Stream]:
    safe = Stream(prompt, namespace=namespace)
    return [safe] if preference is None else [safe, safe.guided(preference)]


def rows_of(guided: Sequence[bool]) -> list[list[int]]:
    """Each request's rows: the safe one, and the ARM's if it is guided."""
    rows, begin = [], 0
    for is_guided in guided:
        rows.append(list(range(begin, begin + 1 + is_guided)))
        begin += 1 + is_guided
    return rows


def join_rows(
    rows: TwinRows,
    prompts: Sequence[Sequence[int]],
    preferences: Sequence[Sequence[float] | None],
    chunk: int = sys.maxsize,
) -> TwinLogits:
    """Compute whole prompts, ``chunk`` tokens at a time, and join them; returns the logits for the first tokens."""
    prefill = rows.begin([(*pair, None) for pair in zip(prompts, preferences, strict=True)])
    logits = rows.compute(prefill, chunk)
    rows.join(prefill)
    return logits


def _guided(streams: Sequence[Stream]) -> list[bool]:
    parents = {stream.parent for stream in streams}
    return [stream in parents for stream in streams if stream.parent is None]


def _twins(logits: torch.Tensor, guided: Sequence[bool]) -> TwinLogits:
    rows = rows_of(guided)
    return TwinLogits(logits[[own[0] for own in rows]], logits[[own[-1] for own in rows]])
