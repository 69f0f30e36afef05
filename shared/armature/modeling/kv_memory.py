"""What keys and values take: whole rows of one length, rounded up as they are reserved. No tensors."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

_COLUMNS = 64


def row_room(rows: int) -> int:
    """How many rows are reserved for so many: the next power of two."""
    return 1 << (rows - 1).bit_length() if rows else 0


def column_room(length: int) -> int:
    """How many positions are reserved for so many: whole runs of 64, which are seldom enough to be copied often."""
    return -(-length // _COLUMNS) * _COLUMNS


@dataclass(frozen=True)
class KvMemory:
    """Bytes of one position: ``shared`` of a request, in layers that its streams share, ``own`` of each stream."""

    shared: int
    own: int

    @classmethod
    def of(cls, config: PretrainedConfig, itemsize: int, shared_layers: int = 0) -> KvMemory:
        """From a model's configuration and the bytes of a number."""
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        layer = 2 * heads * width * itemsize
        return cls(shared_layers * layer, (config.num_hidden_layers - shared_layers) * layer)

    def needed(self, requests: int, streams: int, length: int) -> int:
        """For so many requests with so many streams together, the longest of that length."""
        return column_room(length) * (self.shared * row_room(requests) + self.own * row_room(streams))

    def beside(self, arm: KvMemory) -> KvMemory:
        """Of a base that an ARM with this memory, on a model of its own, guides: at least what the two take.

        The base runs a stream per prompt; of the ARM's two, one has the adapter.
        """
        return KvMemory(self.shared + self.own + arm.shared, arm.own)

    def longest(self, limit: int) -> int:
        """The longest guided request that so many bytes hold; at least one run of positions."""
        return max(1, limit // self.needed(1, 2, _COLUMNS)) * _COLUMNS
