"""The transformers runner: any causal language model, and the reference for every other runner.

Next-token rule (ProSocialAlign, GUI-Gen): ``log pi = log pi_safe + w * q(. ; p)``. Safe and ARM streams read the same
dense weights ``W_safe``; the ARM is an adapter on top, gated off in safe rows and on in ARM rows under each
row's own preference ("twin rows"). Per-row preferences make any mix of requests one batch.

Symbols: R rows, T columns, V vocabulary, K attributes. A cached key or value of an ARM row depends on its preference
(docs/traps.md, 20); streams share computed prefixes of prompts, in blocks keyed by the preference.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from armature.inference.prefix_cache import CachedPrompt, PrefixCache, look_up
from armature.inference.runner import Prefill, Read, check_preferences, single_rows, staying
from armature.inference.stream import Stream
from armature.inference.transformers.kv_cache import KvRows, keeps_positions, left_pad, moves_frequencies
from armature.modeling.adapters.peft_pblora import preferences


@dataclass
class _Rows:
    """Rows that share forward passes: cache, preferences (R, K) and whether the adapter is on (R,)."""

    kv: KvRows
    preferences: torch.Tensor
    gate: torch.Tensor

    def __len__(self) -> int:
        return len(self.gate)

    def append(self, other: _Rows) -> None:
        """Append the rows of ``other``; if that raises, these are as before."""
        weights, gate = torch.cat([self.preferences, other.preferences]), torch.cat([self.gate, other.gate])
        self.kv.append(other.kv)
        self.preferences, self.gate = weights, gate

    def keep(self, rows: Sequence[int]) -> None:
        index = torch.tensor(rows, device=self.gate.device)
        self.kv.select(index)
        self.preferences, self.gate = self.preferences[index], self.gate[index]


@dataclass
class _Prompts:
    """Left-padded prompts of rows that share forward passes: tokens, mask and positions (R, T).

    All rows compute the same columns, from where the first of them is not cached; ``done`` counts the computed ones.
    """

    rows: _Rows
    tokens: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    cached: list[CachedPrompt]
    done: int = 0
    logits: torch.Tensor | None = None

    @property
    def remaining(self) -> int:
        return self.tokens.shape[1] - self.done

    def take(self, tokens: int) -> slice:
        """The next columns, together about ``tokens`` tokens; the cache is told of them."""
        width = min(self.remaining, max(1, tokens // len(self.rows)))
        columns = slice(self.done, self.done + width)
        self.rows.kv.grow(self.mask[:, columns])
        self.done = columns.stop
        return columns


class TransformersRunner:
    """A :class:`~armature.inference.runner.ModelRunner` on any causal language model of transformers.

    Rotary frequencies that move with the length (``dynamic``, ``longrope``) are those of the longest sequence of a
    forward pass, and ``dynamic`` ones stay for shorter sequences after it. Such a model computes the rows of each
    prompt apart, the prompt whole, and forgets before each forward pass what an earlier one has left behind.

    Args:
        model: With or without an adapter.
        attributes: K, the weights of a preference; 0 for a model without an adapter.
        vocab_size: Logits past it are dropped (a padded output layer has ids that no token stands for).
        prefixes: The model's own prefix cache. A model whose cache is more than keys and values by position ignores it.
    """

    combines = False
    """The reference returns every stream's own logits."""

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
        self._is_batched = not moves_frequencies(base.config)
        self._rotary = [module for module in model.modules() if hasattr(module, "max_seq_len_cached")]
        self._prefixes = prefixes if prefixes is not None and keeps_positions(base.config) else None
        self._groups: list[_Rows] = []

    def __len__(self) -> int:
        """R, the number of rows."""
        return sum(map(len, self._groups))

    def prefill(self, streams: Sequence[Stream], *, every_position: bool = False) -> Prefill[list[_Prompts]]:
        """Begin with new streams in rows of their own."""
        check_preferences(streams, self._attributes)
        prefixes = None if every_position else self._prefixes
        groups = [streams] if self._is_batched else [_family(one, streams) for one in streams if one.parent is None]
        prompts = [self._open(group, prefixes) for group in groups]
        return Prefill(streams, prompts, max(one.remaining for one in prompts), every_position)

    def extend(self, prefill: Prefill[list[_Prompts]], tokens: int) -> int:
        """Compute the next columns; returns the number of tokens."""
        prompts = next(one for one in prefill.state if one.remaining)
        in_pieces = self._is_batched or prefill.every_position
        columns = prompts.take(tokens if in_pieces else sys.maxsize)
        logits = self._forward(
            prompts.rows, prompts.tokens[:, columns], prompts.positions[:, columns], every=prefill.every_position
        )
        prefill.newest, prompts.logits = logits, logits[:, -1]
        if not prompts.remaining:
            self._cache_prompts(prompts)
        prefill.remaining = max(one.remaining for one in prefill.state)
        if not prefill.remaining:
            prefill.logits = torch.cat([one.logits for one in prefill.state if one.logits is not None])
        return int(prompts.tokens[:, columns].numel())

    def join(self, prefill: Prefill[list[_Prompts]]) -> None:
        """Add the rows of new streams at the end."""
        new = [prompts.rows for prompts in prefill.state]
        if self._is_batched and self._groups:
            self._groups[0].append(new[0])
        else:
            self._groups += new

    def decode(self, tokens: torch.Tensor, reads: Sequence[Read] | None = None) -> torch.Tensor:
        """Feed every row its newest token; see :meth:`armature.inference.runner.ModelRunner.decode`."""
        logits, wanted = [], None if reads is None else single_rows(reads)
        for rows, newest in zip(self._groups, torch.split(tokens, list(map(len, self._groups))), strict=True):
            positions = rows.kv.lengths[:, None]
            rows.kv.grow()
            logits.append(self._forward(rows, newest[:, None], positions)[:, -1])
        table = torch.cat(logits)
        return table if wanted is None else table[wanted]

    def evict(self, rows: Sequence[int]) -> None:
        """Free these rows; the cache shrinks with them."""
        if not rows:
            return
        kept, groups, begin = staying(len(self), rows), list[_Rows](), 0
        for group in self._groups:
            own = [row - begin for row in kept if begin <= row < begin + len(group)]
            begin += len(group)
            if own:
                groups.append(group)
                if len(own) < len(group):
                    group.keep(own)
        self._groups = groups

    def clear(self) -> None:
        """Free all rows and their memory."""
        self._groups = []

    def _open(self, streams: Sequence[Stream], prefixes: PrefixCache | None) -> _Prompts:
        """Rows for new streams; what the prefix cache has of all of them is taken from it."""
        device = self._model.device
        tokens, mask = left_pad([list(stream.prompt) for stream in streams], device)
        table = [stream.preference or [0.0] * self._attributes for stream in streams]
        rows = _Rows(
            KvRows(mask[:, :0]),
            torch.tensor(table, dtype=torch.float32, device=device),
            torch.tensor([stream.preference is not None for stream in streams], device=device),
        )
        cached = [look_up(prefixes, stream) for stream in streams]
        padding = [tokens.shape[1] - len(stream.prompt) for stream in streams]
        known = min(left + prompt.length for left, prompt in zip(padding, cached, strict=True))
        if known:
            rows.kv.recall([prompt.blocks for prompt in cached], mask[:, :known])
        return _Prompts(rows, tokens, mask, (mask.cumsum(-1) - 1).clamp(min=0), cached, known)

    def _cache_prompts(self, prompts: _Prompts) -> None:
        """Offer computed prompts to the prefix cache, except those that overflow.

        A masked position that is not finite spoils every row that attends past it (0 * NaN = NaN).
        """
        kv = prompts.rows.kv
        if self._prefixes is not None and kv.is_whole:
            for row, (prompt, is_sound) in enumerate(zip(prompts.cached, kv.is_sound, strict=True)):
                if is_sound:
                    self._prefixes.put(prompt.keys, partial(kv.read, row))

    @torch.inference_mode()
    def _forward(self, rows: _Rows, tokens: torch.Tensor, positions: torch.Tensor, every: bool = False) -> torch.Tensor:
        """Logits after the last column (R, 1 or more, V), or after every column."""
        if not self._is_batched:
            for module in self._rotary:
                module.max_seq_len_cached = 0  # else the frequencies of a longer sequence before this one stay
        optional: dict[str, Any] = {"logits_to_keep": 1} if self._keeps_last and not every else {}
        if self._takes_positions:
            optional["position_ids"] = positions
        with preferences(self._model, rows.preferences, gate=rows.gate) if self._attributes else nullcontext():
            out = self._model(
                input_ids=tokens, attention_mask=rows.kv.mask, past_key_values=rows.kv.cache, use_cache=True, **optional
            )
        logits: torch.Tensor = out.logits[..., : self._vocab_size]
        return logits


def _family(trunk: Stream, streams: Sequence[Stream]) -> list[Stream]:
    """A stream and those that branch from it: equal prompts, and so equal frequencies."""
    return [trunk, *(stream for stream in streams if stream.parent is trunk)]
