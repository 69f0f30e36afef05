"""Sources name objects, never persons: a request, a thread, a caller (CONTRIBUTING, "Words")."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.source_tree import PAGES, relative

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("shared", "services", "benchmarks")
PERSONS = re.compile(r"\b(who|whoever|whom|somebody|someone|nobody|everybody|everyone|anybody|anyone)\b", re.IGNORECASE)
SPEECH = "services/cli/armature_cli/demo"
"""What the people of the demo's world say is data; docstrings and comments there keep to the rule."""

ALLOWED: frozenset[str] = frozenset()
"""Files that may still break the rule. It only shrinks."""


def sources() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Comments and string literals with their lines: docstrings, help, descriptions, log lines, errors."""
    text = path.read_text()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    is_speech = path.relative_to(ROOT).as_posix().startswith(SPEECH)
    for node in ast.walk(ast.parse(text)):
        children = ast.iter_child_nodes(node) if not is_speech else ()
        told = [child for child in children if isinstance(child, ast.Constant)]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            told = [node.value]
        for constant in told:
            if isinstance(constant.value, str):
                yield constant.lineno, constant.value


def persons(path: Path) -> list[str]:
    """Each mention of a person as ``file:line: word``."""
    where = path.relative_to(ROOT).as_posix()
    return sorted({f"{where}:{line}: {word}" for line, text in prose(path) for word in PERSONS.findall(text)})


@pytest.mark.parametrize("room", ROOMS)
def test_sources_name_no_person(room: str) -> None:
    paths = [path for path in sources() if path.is_relative_to(ROOT / room)]
    assert paths
    found = [one for path in paths if path.relative_to(ROOT).as_posix() not in ALLOWED for one in persons(path)]
    assert found == []


def test_the_allow_list_names_files_that_need_it() -> None:
    assert [name for name in sorted(ALLOWED) if not persons(ROOT / name)] == []


def test_pages_name_no_person() -> None:
    pages = [page for page in PAGES if page.name != "CHANGELOG.md"]
    lines = [(page, number, line) for page in pages for number, line in enumerate(page.read_text().splitlines(), 1)]
    assert len(lines) > 1000
    assert [f"{relative(page)}:{number}" for page, number, line in lines if PERSONS.search(line)] == []
