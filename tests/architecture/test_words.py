"""Sources name objects, never persons, and docstrings begin with a short line (CONTRIBUTING, "Words")."""

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

FIRST_LINE = 100
LONG_FIRST_LINES = ("shared/armature/algorithms/", "shared/armature/db/migrations/versions/")
"""Folders without that bound: a first line of an algorithm may be a formula, and migrations stay as they are."""


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


def first_lines(path: Path) -> Iterator[tuple[int, str]]:
    """First lines of the docstrings of a module, its classes and functions, with the lines of their owners."""
    for node in ast.walk(ast.parse(path.read_text())):
        is_documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if is_documented and (docstring := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), docstring.splitlines()[0]


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


def test_docstrings_first_lines_are_short() -> None:
    paths = [path for path in sources() if not path.relative_to(ROOT).as_posix().startswith(LONG_FIRST_LINES)]
    lines = [(path, number, line) for path in paths for number, line in first_lines(path)]
    assert len(lines) > 1000
    assert [f"{relative(path)}:{number}" for path, number, line in lines if len(line) > FIRST_LINE] == []
