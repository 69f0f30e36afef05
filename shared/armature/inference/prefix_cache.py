"""Computed prompts, kept for those that begin alike: blocks by what they were computed from, within a bound of bytes.

A block's key is a chain of hashes over the scope, the preference, and every token up to its end, so two blocks have the
same key only if all that they depend on is the same. One cache belongs to one set of weights and goes with it.

The scope is whoever may learn what others of the scope have asked: a prompt that is answered faster than it should be
has been asked before. The decoder's scopes are tenants.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from armature.inference.runner import RowRequest

Block = tuple[Tensor, ...]
"""What is kept of a run of positions; only who puts it there knows what it is."""

BLOCK_TOKENS = 32


class PrefixCache:
    """Blocks in the order of their last use; the least recently used go first.

    Args:
        max_bytes: Of all blocks together.
        observe: Is told of every look-up: the tokens asked for, and those found.
    """

    def __init__(self, max_bytes: int, observe: Callable[[int, int], None] = lambda asked, found: None) -> None:
        self._max_bytes = max_bytes
        self._observe = observe
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self.used_bytes = 0

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self._blocks)

    def find(self, keys: Sequence[bytes]) -> list[Block]:
        """The blocks of the longest known beginning of a chain."""
        found = []
        for key in keys:
            if (block := self._blocks.get(key)) is None:
                break
            found.append(block)
        for key in reversed(keys[: len(found)]):  # its beginning is the last to go: nothing is found without it
            self._blocks.move_to_end(key)
        self._observe(len(keys) * BLOCK_TOKENS, len(found) * BLOCK_TOKENS)
        return found

    def put(self, keys: Sequence[bytes], read: Callable[[slice], Block]) -> None:
        """Keep what is not kept yet of a chain; ``read`` copies a block's columns."""
        for number, columns in reversed(list(enumerate(block_columns(len(keys))))):
            if (key := keys[number]) not in self._blocks:
                self._blocks[key] = block = read(columns)
                self.used_bytes += _size(block)
            self._blocks.move_to_end(key)
            while self.used_bytes > self._max_bytes:
                self.used_bytes -= _size(self._blocks.popitem(last=False)[1])


@dataclass(frozen=True)
class CachedPrompt:
    """One stream's prompt: the keys of its whole blocks, and the blocks that are known from its beginning on."""

    keys: Sequence[bytes] = ()
    blocks: Sequence[Block] = ()

    @property
    def length(self) -> int:
        """How many positions are known."""
        return len(self.blocks) * BLOCK_TOKENS


def look_up(
    cache: PrefixCache, scope: str, preference: Sequence[float] | None, prompt: Sequence[int], most: int | None = None
) -> CachedPrompt:
    """What is known of a prompt, at most ``most`` positions and never the last: its logits start the answer.

    Args:
        cache: Of the weights that compute it.
        scope: Whose prompts it may share.
        preference: Of the stream; None: the safe one.
        prompt: Token ids.
        most: Positions that are of use; None: all.
    """
    keys = list(_chain(scope, preference, prompt))
    limit = len(prompt) - 1 if most is None else min(most, len(prompt) - 1)
    return CachedPrompt(keys, cache.find(keys[: limit // BLOCK_TOKENS]))


def look_up_row(
    cache: PrefixCache | None, request: RowRequest, preference: Sequence[float] | None, most: int | None = None
) -> CachedPrompt:
    """What is known of one stream of a request, as :func:`look_up` says; nothing of one that shares nothing."""
    if cache is None or request.cache_scope is None or request.every_position:
        return CachedPrompt()
    return look_up(cache, request.cache_scope, preference, request.prompt, most)


def block_columns(blocks: int) -> Iterator[slice]:
    """The positions of the first blocks."""
    return (slice(begin * BLOCK_TOKENS, (begin + 1) * BLOCK_TOKENS) for begin in range(blocks))


def _chain(scope: str, preference: Sequence[float] | None, prompt: Sequence[int]) -> Iterator[bytes]:
    weights = None if preference is None else struct.pack(f"{len(preference)}d", *preference)
    key = hashlib.sha256(repr((scope, weights)).encode()).digest()
    for columns in block_columns(len(prompt) // BLOCK_TOKENS):
        key = hashlib.sha256(key + struct.pack(f"{BLOCK_TOKENS}q", *prompt[columns])).digest()
        yield key


def _size(block: Block) -> int:
    return sum(part.nbytes for part in block)
