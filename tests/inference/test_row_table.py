"""Rows move as little as they must, and everybody's content follows: checked on a list, without tensors."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from armature.inference.lean.row_table import Move, RowTable

Content = dict[int, tuple[int, str]]


def apply(content: Content, moves: list[Move]) -> None:
    """What a cache does: all copies at once."""
    moved = {target: content[source] for source, target in moves}
    content.update(moved)


def check(table: RowTable, content: Content, guided: dict[int, bool]) -> None:
    for slot, row, arm in zip(table.slots, table.safe_rows, table.arm_rows, strict=True):
        assert content[row] == (slot, "safe")
        assert (arm is not None) == guided[slot]
        if arm is not None:
            assert content[arm] == (slot, "arm")
    assert sorted([*table.safe_rows, *(row for row in table.arm_rows if row is not None)]) == list(range(table.rows))
    assert max(table.safe_rows, default=-1) < len(table) == len(table.safe)
    assert [table.safe[parent] for parent in table.parents] == table.arm


@given(st.lists(st.one_of(st.lists(st.booleans(), min_size=1, max_size=5), st.randoms(use_true_random=False))))
def test_everybody_s_content_follows(script: list[object]) -> None:
    table, content, guided = RowTable(), Content(), dict[int, bool]()
    for act in script:
        if isinstance(act, list):
            before = len(table)
            apply(content, table.join(act))
            joined = table.slots[before:]
            guided.update(zip(joined, act, strict=True))
            for row, slot in zip(table.safe_rows[before:], joined, strict=True):
                content[row] = (slot, "safe")
            for row, slot in zip(table.arm_rows[before:], joined, strict=True):
                if row is not None:
                    content[row] = (slot, "arm")
        else:
            kept = sorted(act.sample(range(len(table)), act.randint(0, len(table))))  # type: ignore[attr-defined]
            expected = [table.slots[slot] for slot in kept]
            for moves in table.keep(kept):
                apply(content, moves)
            assert table.slots == expected
        check(table, content, guided)


def test_one_who_leaves_costs_at_most_three_rows() -> None:
    table = RowTable()
    table.join([True] * 16)
    safe, arm = table.keep([slot for slot in range(16) if slot != 3])
    assert len(safe) == 1  # the last safe row fills the gap
    assert len(arm) == 2  # one fills the gap among the ARM rows, one the place that the safe region gave up
    assert table.join([False]) != []


def test_joining_moves_no_more_arm_rows_than_there_are_joiners() -> None:
    table = RowTable()
    table.join([True] * 8)
    assert len(table.join([True])) == 1
    assert len(table.join([True] * 20)) == 9
