"""Near duplicates are found exactly, at any threshold and in any order."""

from __future__ import annotations

import random

import pytest

from armature.algorithms.near_duplicates import NearDuplicates, coverage, jaccard, repetition, shingles


def test_case_and_punctuation_do_not_count() -> None:
    assert shingles("Yes: one, two THREE!") == shingles("yes one two three") == {"yes one two", "one two three"}
    assert shingles("two words") == {"two words"}
    assert shingles("...") == frozenset()


def test_similarity_is_shared_triples_by_all() -> None:
    assert jaccard(shingles("a b c d"), shingles("a b c e")) == pytest.approx(1 / 3)
    assert coverage(shingles("a b c d"), shingles("x a b c")) == 0.5
    assert coverage(frozenset(), shingles("a")) == 0.0


def test_repetition_is_the_share_of_triples_said_before() -> None:
    assert repetition("a b c a b c") == pytest.approx(1 / 4)
    assert repetition("a b c d") == repetition("") == 0.0


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_the_index_finds_what_comparing_all_finds(threshold: float) -> None:
    draws = random.Random(7)
    words = [f"w{n}" for n in range(12)]
    texts = [" ".join(draws.choices(words, k=draws.randint(1, 14))) for _ in range(60)]
    texts += [text.replace("w3", "w4") for text in texts[:30]] + texts[:5] + ["", "!"]
    seen, found = NearDuplicates(threshold), 0
    for place, text in enumerate(texts):
        own = shingles(text)
        expected = any(own == other or jaccard(own, other) > threshold for other in map(shingles, texts[:place]))
        assert seen.has(text) == expected
        found += expected
        seen.add(text)
    assert found >= 6
