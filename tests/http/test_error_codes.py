"""docs/errors.md lists exactly the codes that the source can answer with, each with its status."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("shared", "services") for path in sorted((ROOT / folder).rglob("*.py"))]


def trees() -> list[ast.Module]:
    return [ast.parse(path.read_text()) for path in SOURCES]


def assigned(cls: ast.ClassDef) -> dict[str, object]:
    """The class's literal attributes; ``code, status = "x", 400`` counts too."""
    found: dict[str, object] = {}
    for statement in cls.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Constant):
            found[ast.unparse(statement.target)] = statement.value.value
        if isinstance(statement, ast.Assign):
            (target,) = statement.targets
            names = [ast.unparse(name) for name in (target.elts if isinstance(target, ast.Tuple) else [target])]
            values = statement.value.elts if isinstance(statement.value, ast.Tuple) else [statement.value]
            found |= {
                name: value.value for name, value in zip(names, values, strict=False) if isinstance(value, ast.Constant)
            }
    return found


def error_classes() -> dict[str, dict[str, object]]:
    """Code and status by class name, inherited from base to base."""
    classes = [node for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    known: dict[str, dict[str, object]] = {}
    while True:
        fresh = [
            cls
            for cls in classes
            if cls.name not in known
            and (cls.name == "ArmatureError" or any(ast.unparse(base) in known for base in cls.bases))
        ]
        if not fresh:
            return known
        for cls in fresh:
            inherited = next((known[ast.unparse(base)] for base in cls.bases if ast.unparse(base) in known), {})
            known[cls.name] = {**inherited, **assigned(cls)}


def raised() -> dict[str, set[str]]:
    """Statuses by code: of each class, and of each call that gives a class another code."""
    classes = error_classes()
    statuses: defaultdict[str, set[str]] = defaultdict(set)
    for error in classes.values():
        statuses[str(error["code"])].add(str(error["status"]))
    for call in (node for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        for keyword in call.keywords:
            if name in classes and keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                statuses[str(keyword.value.value)].add(str(classes[name]["status"]))
    return dict(statuses)


def documented() -> dict[str, set[str]]:
    rows = re.findall(r"^\| `([a-z_]+)` \| ([0-9, ]+) \|", (ROOT / "docs/errors.md").read_text(), re.M)
    assert len(rows) == len({code for code, _ in rows}), "a code is listed twice"
    return {code: set(statuses.split(", ")) for code, statuses in rows}


@pytest.mark.slow
def test_the_page_lists_exactly_the_codes_of_the_source() -> None:
    found = raised()
    assert len(found) > 30
    assert {"internal_error", "unknown_attribute", "object_not_found"} <= set(found)
    assert documented() == found
