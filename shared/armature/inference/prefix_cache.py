"""LRU prefix cache, bounded in bytes: KV blocks by a hash chain over (namespace, preference, tokens).

Two blocks have the same key only if everything that they depend on is the same. One cache belongs to one set of weights
and is dropped with it. A hit is visible through latency, so a namespace is a tenant: no tenant learns which prompts
another one has sent.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from armature.inference.stream import Stream

Block = tuple[Tensor, ...]
"""The cached tensors of a run of positions, in the layout of the runner that put them there."""

BLOCK_TOKENS = 32
"""Positions of a block."""


class PrefixCache:
    """Blocks in the order of their last use; the least recently used are evicted first.

    Args:
        max_bytes: Of all blocks together.
        observe: Called at every look-up with the tokens asked for and those found.
    """

    def __init__(self, max_bytes: int, observe: Callable[[int, int], None] = lambda asked, found: None) -> None:
        self._max_bytes = max_bytes
        self._observe = observe
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self.used_bytes = 0

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self._blocks)

    def find(self, keys: Sequence[bytes]) -> list[Block]:
        """Return the blocks of the longest cached prefix of a chain."""
        found = []
        for key in keys:
            if (block := self._blocks.get(key)) is None:
                break
            found.append(block)
        for key in reversed(keys[: len(found)]):  # the prefix is evicted last: nothing is found without it
            self._blocks.move_to_end(key)
        self._observe(len(keys) * BLOCK_TOKENS, len(found) * BLOCK_TOKENS)
        return found

    def put(self, keys: Sequence[bytes], read: Callable[[slice], Block]) -> None:
        """Cache the blocks of a chain that are missing; ``read`` copies a block's columns."""
        for number, columns in reversed(list(enumerate(block_columns(len(keys))))):
            if (key := keys[number]) not in self._blocks:
                self._blocks[key] = block = read(columns)
                self.used_bytes += _size(block)
            self._blocks.move_to_end(key)
            while self.used_bytes > self._max_bytes:
                self.used_bytes -= _size(self._blocks.popitem(last=False)[1])


@dataclass(frozen=True)
class CachedPrompt:
    """One stream's prompt: the keys of its whole blocks, and the cached blocks of its longest prefix."""

    keys: Sequence[bytes] = ()
    blocks: Sequence[Block] = ()

    @property
    def length(self) -> int:
        """The number of cached positions."""
        return len(self.blocks) * BLOCK_TOKENS


def look_up(cache: PrefixCache | None, stream: Stream, limit: int | None = None) -> CachedPrompt:
    """Find the cached blocks of a stream's prompt, never the last position: its logits start the answer.

    Args:
        cache: Of the weights that compute the stream; None: nothing is cached.
        stream: Without a namespace nothing is shared.
        limit: Positions that are of use; None: all.
    """
    if cache is None or stream.namespace is None:
        return CachedPrompt()
    keys = list(_chain(stream.namespace, stream.preference, stream.prompt))
    usable = len(stream.prompt) - 1 if limit is None else min(limit, len(stream.prompt) - 1)
    return CachedPrompt(keys, cache.find(keys[: usable // BLOCK_TOKENS]))


def block_columns(blocks: int) -> Iterator[slice]:
    """Yield the positions of each of the first ``blocks`` blocks."""
    return (slice(begin * BLOCK_TOKENS, (begin + 1) * BLOCK_TOKENS) for begin in range(blocks))


def _chain(namespace: str, preference: Sequence[float] | None, prompt: Sequence[int]) -> Iterator[bytes]:
    weights = None if preference is None else struct.pack(f"{len(preference)}d", *preference)
    key = hashlib.sha256(repr((namespace, weights)).encode()).digest()
    for columns in block_columns(len(prompt) // BLOCK_TOKENS):
        key = hashlib.sha256(key + struct.pack(f"{BLOCK_TOKENS}q", *prompt[columns])).digest()
        yield key


def _size(block: Block) -> int:
    return sum(part.nbytes for part in block)
