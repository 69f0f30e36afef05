"""Bytes of keys and values: whole rows of one length, rounded up as they are reserved. No tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import PretrainedConfig

COLUMN_BLOCK = 64
"""Positions by which a cache grows, and over which a CPU's attention adds up."""


def row_room(rows: int) -> int:
    """Round a number of rows up to what is reserved for them: the next power of two."""
    return 1 << (rows - 1).bit_length() if rows else 0


def column_room(length: int) -> int:
    """Round ``length`` up to what is reserved: a multiple of 64 positions, so that growing seldom copies."""
    return -(-length // COLUMN_BLOCK) * COLUMN_BLOCK


@dataclass(frozen=True)
class KvMemory:
    """Bytes per position: ``shared`` by a prompt's streams (layers below the split), and ``own`` to each.

    ``arm`` belongs to an ARM on a model of its own, which runs two streams per guided request; the base then runs one
    per prompt.
    """

    shared: int
    own: int
    arm: KvMemory | None = None

    @classmethod
    def of(cls, config: PretrainedConfig, itemsize: int, shared_layers: int = 0) -> KvMemory:
        """Compute it from a model's configuration and the bytes of a number."""
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        layer = 2 * heads * width * itemsize
        return cls(shared_layers * layer, (config.num_hidden_layers - shared_layers) * layer)

    def needed(self, prompts: int, streams: int, length: int) -> int:
        """Count bytes of ``prompts`` with ``streams`` in all (a guide adds one), ``length`` positions each."""
        if self.arm is None:
            return column_room(length) * (self.shared * row_room(prompts) + self.own * row_room(streams))
        guided = streams - prompts
        base = replace(self, arm=None).needed(prompts, prompts, length)
        return base + self.arm.needed(guided, 2 * guided, length)

    def longest(self, prompts: int, streams: int, limit: int) -> int:
        """Return the greatest length that fits into ``limit`` bytes; 0: they do not fit at all."""
        return max(0, limit // self.needed(prompts, streams, COLUMN_BLOCK)) * COLUMN_BLOCK
