"""The sizes that CONTRIBUTING states: lines of a file and of a function. Parameters are counted by ruff (PLR0913)."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support.source_tree import MODULES, relative

FILE_LINES = 300
ALGORITHM_LINES = 200
FUNCTION_LINES = 50

LONG_FILES = {
    "shared/armature/errors.py": "every error code in one catalogue, a few lines each",
    "shared/armature/algorithms/guided_decoding.py": "one distribution; most lines are shapes and formulas",
    "shared/armature/algorithms/sparse_selection.py": "one selection in two passes that share their bounds",
}
"""Files that may be longer, each with its reason."""

MIGRATIONS = "shared/armature/db/migrations/versions/"
"""What they change is written down in the order of its execution, however long that is."""


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def limit(path: Path) -> int:
    return ALGORITHM_LINES if "algorithms" in path.parts else FILE_LINES


def test_files_are_short_or_have_a_reason() -> None:
    long = {relative(path) for path in MODULES if lines(path) > limit(path)}
    assert long - LONG_FILES.keys() == set()
    assert LONG_FILES.keys() - long == set()


def test_functions_are_short() -> None:
    long = []
    for path in MODULES:
        if relative(path).startswith(MIGRATIONS):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > FUNCTION_LINES:
                    long.append(f"{relative(path)}:{node.name}: {size}")
    assert long == []
