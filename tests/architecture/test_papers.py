"""docs/papers.md names functions that exist, and every algorithm file but the scorer appears in it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAPERS = (ROOT / "docs/papers.md").read_text()
NAMED = sorted(set(re.findall(r"`(algorithms/\w+\.py):(\w+)`", PAPERS)))


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_every_function_named_exists(path, name):
    tree = ast.parse((ROOT / "shared/armature" / path).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_every_algorithm_is_named():
    files = {f"algorithms/{path.name}" for path in (ROOT / "shared/armature/algorithms").glob("[!_]*.py")}
    assert files - {path for path, _ in NAMED} == {"algorithms/lexicon.py"}
    assert len(NAMED) > 20
