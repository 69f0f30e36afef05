"""Each row of docs/traps.md has a marked test, and references to the page name its rows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.markers import marked_tests
from tests.support.pages import table_rows

ROOT = Path(__file__).resolve().parents[2]
ROWS = [int(number) for number, *_ in table_rows("docs/traps.md", ("#", "mistake", "what holds here"))]
SOURCES = sorted(path for folder in ("services", "shared", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def test_each_trap_has_a_test_and_each_marker_is_a_trap() -> None:
    assert list(range(1, 25)) == ROWS
    assert marked_tests("trap").keys() == set(ROWS)


def test_references_to_the_page_name_a_row() -> None:
    found = {int(row) for path in SOURCES for row in re.findall(r"docs/traps\.md, (\d+)", path.read_text())}
    assert found <= set(ROWS)


@pytest.mark.trap(16)
def test_sources_strip_no_phrase() -> None:
    """``text.strip("the answer")`` takes away any of those characters, not the phrase."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("strip", "lstrip", "rstrip"):
                phrases = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                assert not any(sum(map(str.isalpha, phrase)) > 1 for phrase in phrases), f"{path}:{node.lineno}"
