"""Twin rows: the safe stream and the ARM stream of every request in one forward pass over one set of weights.

Next-token rule (ProSocialAlign, GUI-Gen): ``log pi = log pi_safe + w * q(. ; p)``. Both streams read the same dense
weights ``W_safe``; the ARM is a PBLoRA adapter on top, so a guided request owns two rows of the batch, one with the
adapter gated off and one with it on under the request's own preference. A request without guidance owns one row.
Per-row preferences make any mix of requests one batch.

Symbols: S requests (slots), R rows (S to 2S), V vocabulary, K attributes. A cached key or value of an ARM row depends
on its preference (trap T20); what requests share is computed beginnings of prompts, in blocks that name the preference.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from armature.inference.prefix_cache import CachedPrompt, PrefixCache, look_up_row
from armature.inference.runner import Mixed, Prefill, RowRequest, TwinLogits, check_preferences
from armature.inference.transformers.kv_cache import KvRows, keeps_positions, left_pad
from armature.modeling.adapters.peft_pblora import preferences


class TwinRows:
    """Implements :class:`armature.inference.runner.Rows` on any model of transformers: the reference of all back ends.

    Args:
        model: Any causal language model of transformers, with or without a PBLoRA adapter.
        attributes: K, how many weights a preference has; 0 for a model without an adapter.
        vocab_size: Logits past it are dropped (a padded output layer has ids that no token stands for).
        prefixes: Computed beginnings of prompts, of this model alone. A model whose cache is more than keys and values
            by position does without.
    """

    mixes = False
    """The reference tells all streams apart."""

    def __init__(
        self,
        model: PreTrainedModel,
        attributes: int = 0,
        vocab_size: int | None = None,
        prefixes: PrefixCache | None = None,
    ) -> None:
        self._model = model
        self._attributes = attributes
        self._vocab_size = vocab_size
        base = model.get_base_model() if attributes else model
        accepted = inspect.signature(base.forward).parameters
        self._keeps_last = "logits_to_keep" in accepted
        self._takes_positions = "position_ids" in accepted
        self._prefixes = prefixes if prefixes is not None and keeps_positions(base.config) else None
        self._kv: KvRows | None = None
        self._twin: list[bool] = []
        self._preferences = torch.zeros(0, attributes, dtype=torch.float32, device=model.device)

    def __len__(self) -> int:
        """S: the requests that have rows."""
        return len(self._twin)

    def begin(self, requests: Sequence[RowRequest]) -> TwinPrefill:
        """New requests in rows of their own; see :meth:`armature.inference.runner.Rows.begin`."""
        check_preferences(requests, self._attributes)
        twin = [request.preference is not None for request in requests]
        rows = [row for request in requests for row in _rows(request)]
        table = [weight or [0.0] * self._attributes for _, weight in rows]
        weights = torch.tensor(table, dtype=torch.float32, device=self._model.device)
        forward = partial(self._forward, every=requests[0].every_position)
        known = KnownPrompts(self._prefixes, [look_up_row(self._prefixes, *row) for row in rows])
        return TwinPrefill(forward, [list(request.prompt) for request, _ in rows], _Streams(twin, weights), known)

    def join(self, prefill: Prefill) -> None:
        """Add the rows of new requests at the end."""
        assert isinstance(prefill, TwinPrefill)
        if self._kv is None:
            self._kv = prefill.kv
        else:
            self._kv.append(prefill.kv)
        self._twin += prefill.streams.twin
        self._preferences = torch.cat([self._preferences, prefill.streams.preferences])

    def step(self, tokens: torch.Tensor, mixed: Sequence[Mixed | None] = ()) -> TwinLogits:
        """Feed each request's newest token (S,) to its rows and return the logits for the next one."""
        assert self._kv is not None, "no request has joined"
        streams = _Streams(self._twin, self._preferences)
        positions = self._kv.lengths[:, None]
        self._kv.grow()
        return self._forward(self._kv, tokens[streams.slots][:, None], positions, streams)

    def keep(self, slots: Sequence[int]) -> None:
        """Drop the rows of all requests but these (in their order); the cache shrinks with them."""
        if not slots:
            self._kv, self._twin, self._preferences = None, [], self._preferences[:0]
            return
        assert self._kv is not None, "no request has joined"
        first = _Streams(self._twin, self._preferences).safe.tolist()
        rows = [row for slot in slots for row in range(first[slot], first[slot] + 1 + self._twin[slot])]
        index = torch.tensor(rows, device=self._model.device)
        self._kv.select(index)
        self._preferences = self._preferences[index]
        self._twin = [self._twin[slot] for slot in slots]

    @torch.inference_mode()
    def _forward(
        self, kv: KvRows, tokens: torch.Tensor, positions: torch.Tensor, streams: _Streams, every: bool = False
    ) -> TwinLogits:
        """Logits after the last column of each request, or after every column of the one request."""
        optional: dict[str, Any] = {"logits_to_keep": 1} if self._keeps_last and not every else {}
        if self._takes_positions:
            optional["position_ids"] = positions
        with self._adapter(streams):
            out = self._model(
                input_ids=tokens, attention_mask=kv.mask, past_key_values=kv.cache, use_cache=True, **optional
            )
        logits = out.logits[..., : self._vocab_size]
        return (
            TwinLogits(logits[0], logits[-1])
            if every
            else TwinLogits(logits[streams.safe, -1], logits[streams.arm, -1])
        )

    def _adapter(self, streams: _Streams) -> AbstractContextManager[Any]:
        return preferences(self._model, streams.preferences, gate=streams.gate) if self._attributes else nullcontext()


@dataclass(frozen=True)
class KnownPrompts:
    """What is known of each row's prompt, and where what becomes known is kept."""

    cache: PrefixCache | None
    rows: list[CachedPrompt]

    def columns(self, padding: list[int]) -> int:
        """How many of the first columns are padding or known in every row."""
        return min(left + row.length for left, row in zip(padding, self.rows, strict=True))

    def keep(self, kv: KvRows) -> None:
        """Leave what was computed to others, but for prompts that overflow: hidden from what comes before, a token that
        does spoils that all the same."""
        if self.cache is not None and kv.is_whole:
            for number, (row, is_sound) in enumerate(zip(self.rows, kv.is_sound, strict=True)):
                if is_sound:
                    self.cache.put(row.keys, partial(kv.read, number))


class TwinPrefill:
    """Implements :class:`armature.inference.runner.Prefill`: left-padded rows, a run of columns after the other.

    All rows compute the same columns, so they begin where the first of them stops being known.
    """

    def __init__(
        self,
        forward: Callable[[KvRows, torch.Tensor, torch.Tensor, _Streams], TwinLogits],
        prompts: list[list[int]],
        streams: _Streams,
        known: KnownPrompts,
    ) -> None:
        self._forward = forward
        self._tokens, self._mask = left_pad(prompts, streams.preferences.device)
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._known = known
        self._done = known.columns([self._tokens.shape[1] - len(prompt) for prompt in prompts])
        self.streams = streams
        self.kv = KvRows(self._mask[:, :0])
        if self._done:
            self.kv.recall([row.blocks for row in known.rows], self._mask[:, : self._done])

    @property
    def remaining(self) -> int:
        """How many columns are still to be computed."""
        return self._tokens.shape[1] - self._done

    @property
    def logits(self) -> TwinLogits:
        """For the first new token of each request."""
        requests = len(self.streams.twin)
        return TwinLogits(self._logits.safe[-requests:], self._logits.arm[-requests:])

    @property
    def newest(self) -> TwinLogits:
        """After each of the newest columns of the one request."""
        return self._logits

    def advance(self, tokens: int) -> int:
        """Compute the next columns, together at most so many tokens."""
        width = min(self.remaining, max(1, tokens // len(self._tokens)))
        columns = slice(self._done, self._done + width)
        self.kv.grow(self._mask[:, columns])
        self._logits = self._forward(self.kv, self._tokens[:, columns], self._positions[:, columns], self.streams)
        self._done = columns.stop
        if not self.remaining:
            self._known.keep(self.kv)
        return width * len(self._tokens)


class _Streams:
    """Where each request's rows are: ``safe`` and ``arm`` (S,) index rows, ``slots`` (R,) maps back, ``gate`` (R,)."""

    def __init__(self, twin: list[bool], preferences: torch.Tensor) -> None:
        device = preferences.device
        self.twin = twin
        counts = torch.tensor(twin, device=device).long() + 1
        self.arm = counts.cumsum(0) - 1
        self.safe = self.arm - counts + 1
        self.slots = torch.arange(len(twin), device=device).repeat_interleave(counts)
        self.gate = torch.ones(len(self.slots), dtype=torch.bool, device=device)
        self.gate[self.safe] = False
        self.preferences = preferences


def _rows(request: RowRequest) -> list[tuple[RowRequest, list[float] | None]]:
    """Each row's request and the preference of its stream."""
    return [(request, None)] if request.preference is None else [(request, None), (request, list(request.preference))]
