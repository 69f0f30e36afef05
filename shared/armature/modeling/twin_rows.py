"""Twin rows: the safe stream and the ARM stream of every request in one forward pass over one set of weights.

Next-token rule (ProSocialAlign, GUI-Gen): ``log pi = log pi_safe + w * q(. ; p)``. Both streams read the same dense
weights ``W_safe``; the ARM is a PBLoRA adapter on top, so a guided request owns two rows of the batch, one with the
adapter gated off and one with it on under the request's own preference. A request without guidance owns one row.
Per-row preferences make any mix of requests one batch.

Symbols: S requests (slots), R rows (S to 2S), V vocabulary, K attributes. A cached key or value of an ARM row depends
on its preference (trap T20); each request prefills its own rows, and nothing is shared between requests.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from transformers import PreTrainedModel

from armature.modeling.kv_rows import KvRows, left_pad
from armature.modeling.peft_pblora import preferences
from armature.modeling.rows import SCORED_AT_ONCE, TwinLogits, check_preferences


class TwinRows:
    """Implements :class:`armature.modeling.rows.Rows` on any model of transformers: the reference of all back ends.

    Args:
        model: Any causal language model of transformers, with or without a PBLoRA adapter.
        attributes: K, how many weights a preference has; 0 for a model without an adapter.
        vocab_size: Logits past it are dropped (a padded output layer has ids that no token stands for).
    """

    def __init__(self, model: PreTrainedModel, attributes: int = 0, vocab_size: int | None = None) -> None:
        self._model = model
        self._attributes = attributes
        self._vocab_size = vocab_size
        base = model.get_base_model() if attributes else model
        accepted = inspect.signature(base.forward).parameters
        self._keeps_last = "logits_to_keep" in accepted
        self._takes_positions = "position_ids" in accepted
        self._kv: KvRows | None = None
        self._twin: list[bool] = []
        self._preferences = torch.zeros(0, attributes, dtype=torch.float32, device=model.device)

    def __len__(self) -> int:
        """S: the requests that have rows."""
        return len(self._twin)

    def join(self, prompts: Sequence[Sequence[int]], weights: Sequence[Sequence[float] | None]) -> TwinLogits:
        """Prefill new requests and add their rows at the end; see :meth:`armature.modeling.rows.Rows.join`."""
        check_preferences(weights, self._attributes)
        rows = [row for prompt, weight in zip(prompts, weights, strict=True) for row in _rows(prompt, weight)]
        device = self._model.device
        tokens, mask = left_pad([prompt for prompt, _ in rows], device)
        table = [weight or [0.0] * self._attributes for _, weight in rows]
        streams = _Streams(
            [weight is not None for weight in weights], torch.tensor(table, dtype=torch.float32, device=device)
        )
        joining, positions = KvRows(mask), (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._last(joining, tokens, positions, streams)
        if self._kv is None:
            self._kv = joining
        else:
            self._kv.append(joining)
        self._twin += streams.twin
        self._preferences = torch.cat([self._preferences, streams.preferences])
        return logits

    def step(self, tokens: torch.Tensor) -> TwinLogits:
        """Feed each request's newest token (S,) to its rows and return the logits for the next one."""
        assert self._kv is not None, "no request has joined"
        streams = _Streams(self._twin, self._preferences)
        positions = self._kv.lengths[:, None]
        self._kv.grow()
        return self._last(self._kv, tokens[streams.slots][:, None], positions, streams)

    def score(self, prompt: Sequence[int], weights: Sequence[float] | None) -> Iterator[TwinLogits]:
        """Logits after every position of a prompt; see :meth:`armature.modeling.rows.Rows.score`."""
        check_preferences([weights], self._attributes)
        device = self._model.device
        table = [list(row or [0.0] * self._attributes) for _, row in _rows(prompt, weights)]
        streams = _Streams([weights is not None], torch.tensor(table, dtype=torch.float32, device=device))
        kv = KvRows(torch.zeros(len(table), 0, dtype=torch.long, device=device))
        for start in range(0, len(prompt), SCORED_AT_ONCE):
            piece = torch.tensor([prompt[start : start + SCORED_AT_ONCE]] * len(table), device=device)
            positions = start + torch.arange(piece.shape[1], device=device).expand_as(piece)
            kv.grow(piece.shape[1])
            logits = self._forward(kv, piece, positions, streams)
            yield TwinLogits(logits[0], logits[-1])

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

    def _last(self, kv: KvRows, tokens: torch.Tensor, positions: torch.Tensor, streams: _Streams) -> TwinLogits:
        logits = self._forward(kv, tokens, positions, streams, {"logits_to_keep": 1} if self._keeps_last else {})
        return TwinLogits(logits[streams.safe, -1], logits[streams.arm, -1])

    @torch.inference_mode()
    def _forward(
        self,
        kv: KvRows,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        streams: _Streams,
        optional: Mapping[str, Any] = MappingProxyType({}),
    ) -> torch.Tensor:
        if self._takes_positions:
            optional = {**optional, "position_ids": positions}
        with self._adapter(streams):
            out = self._model(
                input_ids=tokens, attention_mask=kv.mask, past_key_values=kv.cache, use_cache=True, **optional
            )
        logits: torch.Tensor = out.logits[..., : self._vocab_size].float()  # fp32 before any log-softmax (methods 3.4)
        return logits

    def _adapter(self, streams: _Streams) -> AbstractContextManager[Any]:
        return preferences(self._model, streams.preferences, gate=streams.gate) if self._attributes else nullcontext()


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


def _rows(prompt: Sequence[int], weight: Sequence[float] | None) -> list[tuple[list[int], list[float] | None]]:
    safe: tuple[list[int], list[float] | None] = (list(prompt), None)
    return [safe] if weight is None else [safe, (list(prompt), list(weight))]
