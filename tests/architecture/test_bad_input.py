"""Each row of docs/bad-input.md has a marked test in each part that the row names, and each marker is a row."""

from __future__ import annotations

import pytest

from tests.support.markers import marked_tests
from tests.support.pages import table_rows

FOLDERS = {"API": ("api",), "decoder": ("decoder",), "job": ("modeling", "worker")}
ROWS = table_rows("docs/bad-input.md", ("#", "input", "answer", "seen by"))


def test_rows_are_numbered_and_markers_name_rows() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, 65))
    assert marked_tests("bad_input").keys() <= {int(number) for number, *_ in ROWS}


@pytest.mark.parametrize(("number", "parts"), [(int(number), parts) for number, *_, parts in ROWS])
def test_each_part_that_sees_the_input_has_a_test(number: int, parts: str) -> None:
    folders = {test.split("/")[0] for test in marked_tests("bad_input").get(number, ())}
    assert [part for part in parts.split(", ") if not folders & {*FOLDERS[part]}] == []
