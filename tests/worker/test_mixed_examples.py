"""Rehearsed examples in every batch: their share, their order, and none where there are none."""

import pytest

from armature_worker.data.mixed_examples import MixedExamples
from armature_worker.data.tokenized import Example, batch_indices

LEARNED = [Example([0, number], 1) for number in range(10)]
REHEARSED = [Example([1, number], 1) for number in range(5)]


@pytest.mark.parametrize(
    ("share", "size", "rehearsed"), [(0.5, 8, 4), (0.25, 8, 2), (0.01, 8, 1), (0.99, 8, 7), (0.5, 1, 0)]
)
def test_a_batch_has_its_share_of_rehearsed_examples_and_some_of_both(share, size, rehearsed):
    batch = MixedExamples(LEARNED, REHEARSED, share).batch(seed=0, step=3, size=size)
    assert len(batch) == size
    assert sum(example.ids[0] for example in batch) == rehearsed


def test_every_example_is_rehearsed_once_before_any_is_again():
    mixed = MixedExamples(LEARNED, REHEARSED, 0.5)
    seen = [example.ids[1] for step in range(5) for example in mixed.batch(7, step, 2) if example.ids[0]]
    assert sorted(seen) == list(range(5))


def test_without_rehearsal_batches_are_those_of_the_learned_examples_alone():
    rows = batch_indices(3, 2, len(LEARNED), 4)
    assert MixedExamples(LEARNED, [], 0.5).batch(3, 2, 4) == [LEARNED[row] for row in rows]
