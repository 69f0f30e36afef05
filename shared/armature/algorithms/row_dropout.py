"""Dropout whose mask is a function of (row's seed, layer, token, feature) and of nothing else.

A row then trains alike whichever rows share its batch, however long they are, on whichever device and process, and
also when activation checkpointing computes it a second time. Each entry's fate is a hash of its coordinates::

    h    = mix(mix(seed_row + layer) + token)                    per row and token
    keep = top 32 bits of mix(h + feature) >= rate * 2^32

``mix`` is the finaliser of SplitMix64 (Steele, Lea, Flood 2014), in wrapping 64-bit integers.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def drop_entries(x: Tensor, rate: float, seeds: Tensor, layer: int) -> Tensor:
    """``x`` with a share ``rate`` of its entries set to 0 and the others divided by ``1 - rate``.

    Args:
        x: (rows, T, features).
        rate: In [0, 1).
        seeds: (rows,) int64.
        layer: A number of the layer's own, so that layers draw apart.
    """
    keep = keep_mask(seeds.to(x.device), layer, x.shape[1], x.shape[2], rate)
    return x * keep / (1 - rate)


def keep_mask(seeds: Tensor, layer: int, tokens: int, features: int, rate: float) -> Tensor:
    """Which entries stay: (rows, tokens, features) bool. More tokens or rows leave the others' entries as they are."""
    token = torch.arange(tokens, device=seeds.device)
    feature = torch.arange(features, device=seeds.device)
    hashed = _mix(_mix(seeds + layer)[:, None] + token)
    return _shift(_mix(hashed[..., None] + feature), 32) >= int(rate * 2**32)


def _mix(value: Tensor) -> Tensor:
    value = (value + 1) * _GOLDEN
    value = (value ^ _shift(value, 30)) * _FIRST
    value = (value ^ _shift(value, 27)) * _SECOND
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's is arithmetic."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
