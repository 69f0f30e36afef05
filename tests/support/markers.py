"""Numbers in the markers of tests, read from the sources: no test has to be imported."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


@cache
def marked_tests(marker: str) -> dict[int, set[str]]:
    """Map each number that ``@pytest.mark.<marker>(...)`` names to its tests as ``folder/file::test``."""
    found: dict[int, set[str]] = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            for number in _numbers(node, marker):
                found.setdefault(number, set()).add(f"{path.relative_to(TESTS).as_posix()}::{node.name}")  # type: ignore[attr-defined]
    return found


def _numbers(node: ast.stmt, marker: str) -> list[int]:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
        return []
    calls = [call for call in node.decorator_list if isinstance(call, ast.Call)]
    arguments = [call.args for call in calls if ast.unparse(call.func) == f"pytest.mark.{marker}"]
    return [ast.literal_eval(argument) for given in arguments for argument in given]
