"""Rows move as little as they must, and each stream's content follows: checked on a list, without tensors."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from armature.inference.lean.row_table import Move, RowTable
from armature.inference.runner import staying
from armature.inference.stream import Stream

Content = dict[int, Stream]


def streams(guided: list[bool]) -> list[Stream]:
    """A trunk stream for each request, and a branch of it for the guided ones."""
    safe = [Stream((5,)) for _ in guided]
    return [
        one
        for stream, branches in zip(safe, guided, strict=True)
        for one in (stream, *[stream.guided((1.0,))][:branches])
    ]


def apply(content: Content, moves: list[Move]) -> None:
    """What a cache does: all copies at once."""
    content.update({target: content[source] for source, target in moves})


def check(table: RowTable, content: Content) -> None:
    rows = table.rows
    assert {rows[stream]: stream for stream in table.streams} == {row: content[row] for row in range(len(table))}
    assert sorted(rows.values()) == list(range(len(table)))
    assert [stream.parent is None for stream in rows] == [True] * len(table.trunk) + [False] * len(table.branches)


@given(st.lists(st.one_of(st.lists(st.booleans(), min_size=1, max_size=5), st.randoms(use_true_random=False))))
def test_the_content_of_every_stream_follows(script: list[object]) -> None:
    table, content = RowTable(), Content()
    for act in script:
        before = list(table.streams)
        if isinstance(act, list):
            new = streams(act)
            apply(content, table.join(new))
            content.update({table.rows[stream]: stream for stream in new})
            assert table.streams == before + new
        else:
            requests = [number for number, stream in enumerate(before) if stream.parent is None]
            leaving = [number for number in requests if act.random() < 0.5]  # type: ignore[attr-defined]
            leaving += [
                number + 1 for number in leaving if before[number + 1 : number + 2] and before[number + 1].parent
            ]
            for moves in table.evict(leaving):
                apply(content, moves)
            assert table.streams == [before[number] for number in staying(len(before), leaving)]
        check(table, content)


def test_one_eviction_moves_at_most_three_rows() -> None:
    table = RowTable()
    table.join(streams([True] * 16))
    trunk, branches = table.evict([6, 7])
    assert len(trunk) == 1  # the last trunk row fills the gap
    assert len(branches) == 2  # one fills the gap among the branches, one the place that the trunk gave up
    assert table.join(streams([False])) != []


def test_joining_moves_no_more_branches_than_streams_join() -> None:
    table = RowTable()
    table.join(streams([True] * 8))
    assert len(table.join(streams([True]))) == 1
    assert len(table.join(streams([True] * 20))) == 9
