"""Texts that are nearly equal, exactly and without comparing every two: Jaccard similarity of word triples.

Papers: shingles (Broder 1997), prefix filtering (Bayardo, Ma and Srikant 2007)::

    s(x)    = the runs of 3 words in x, lower case, without punctuation
    J(x, y) = |s(x) & s(y)| / |s(x) | s(y)|
    rep(x)  = 1 - |s(x)| / runs of 3 words in x          share of runs that came before in the same text

With J(x, y) >= t, at least t |s(x)| shingles of x are in y. So x and y share one of the first
``|s(x)| - ceil(t |s(x)|) + 1`` shingles of x in any fixed order, and an index of those finds y. The order here is that
of a hash, under which no shingle is likelier to be looked up than another.

What differs: a text shorter than 3 words is one shingle; equal texts are nearly equal at any t.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict

_WORDS = 3
_WORD = re.compile(r"\w+")

Shingles = frozenset[str]


def shingles(text: str) -> Shingles:
    """``s(x)``; empty for a text without a word."""
    return frozenset(_runs(text))


def jaccard(first: Shingles, second: Shingles) -> float:
    """``J``, in [0, 1]; 1 for two empty sets."""
    union = len(first | second)
    return len(first & second) / union if union else 1.0


def coverage(part: Shingles, whole: Shingles) -> float:
    """Share of ``part`` that is in ``whole``; 0 for an empty part."""
    return len(part & whole) / len(part) if part else 0.0


def repetition(text: str) -> float:
    """``rep``, in [0, 1); 0 for a text without words."""
    runs = _runs(text)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


class NearDuplicates:
    """The texts seen so far.

    Args:
        threshold: t, in [0, 1]; a similarity above it makes two texts the same.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._by_shingle: defaultdict[str, list[Shingles]] = defaultdict(list)

    def has(self, text: str) -> bool:
        """Whether a text that was added is nearly equal to ``text``."""
        own = shingles(text)
        return any(
            other == own or jaccard(own, other) > self._threshold
            for shingle in self._prefix(own)
            for other in self._by_shingle.get(shingle, ())
        )

    def add(self, text: str) -> None:
        """Add a text."""
        own = shingles(text)
        for shingle in self._prefix(own):
            self._by_shingle[shingle].append(own)

    def _prefix(self, own: Shingles) -> list[str]:
        """The shingles that are indexed and looked up; a text without words has an empty one of its own."""
        kept = len(own) - math.ceil(self._threshold * len(own)) + 1
        return sorted(own, key=_order)[:kept] or [""]


def _runs(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    count = max(1, len(words) - _WORDS + 1) if words else 0
    return [" ".join(words[start : start + _WORDS]) for start in range(count)]


def _order(shingle: str) -> bytes:
    return hashlib.sha256(shingle.encode()).digest()
