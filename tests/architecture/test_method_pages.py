"""Each page of docs/methods ends in a table of what a method is made of, and all that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.pages import ROOT, table_rows
from tests.support.python_names import Module
from tests.support.source_tree import MODULES, TREE, relative

STEMS = sorted(path.stem for path in (ROOT / "docs/methods").glob("*.md"))
ALGORITHMS = "armature/algorithms/"
PLACE = re.compile(r"`([\w/.]+\.py)(?::(\w+))?`")


def places(stem: str) -> dict[str, list[tuple[str, str]]]:
    """Map each row's "what" to the files and names of its "where"."""
    return {what: PLACE.findall(where) for what, where in table_rows(f"docs/methods/{stem}.md", ("what", "where"))}


def imported_algorithms(recipe: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(recipe.read_text())) if isinstance(node, ast.ImportFrom)]
    modules = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
    return {name.split(".")[2] for name in modules if name.startswith("armature.algorithms.")}


@pytest.mark.parametrize("stem", STEMS)
def test_the_page_ends_in_a_table_of_the_methods_parts(stem: str) -> None:
    found = places(stem)
    assert {"mathematics", "tests"} <= set(found)
    assert found.keys() & {"recipe", "decoder stage"}
    assert (ROOT / f"docs/methods/{stem}.md").read_text().rstrip().splitlines()[-1].startswith("| tests |")


@pytest.mark.parametrize("stem", STEMS)
def test_files_and_names_of_the_table_exist(stem: str) -> None:
    named = [place for row in places(stem).values() for place in row]
    assert [path for path, _ in named if path not in TREE] == []
    sources = {path: module for path, _ in named for module in MODULES if relative(module).endswith(f"/{path}")}
    assert [(path, name) for path, name in named if name and name not in Module.read(sources[path]).names] == []


@pytest.mark.parametrize("stem", STEMS)
def test_the_mathematics_that_a_recipe_imports_is_listed(stem: str) -> None:
    recipe = ROOT / f"services/worker/armature_worker/recipes/{stem}.py"
    imported = imported_algorithms(recipe) if recipe.is_file() else set()
    listed = {Path(path).stem for path, _ in places(stem)["mathematics"] if path.startswith(ALGORITHMS)}
    assert imported <= listed
    assert listed or stem == "base_model"


def test_every_algorithm_belongs_to_a_method() -> None:
    listed = {path for stem in STEMS for row in places(stem).values() for path, _ in row if path.startswith(ALGORITHMS)}
    assert {f"{ALGORITHMS}{path.name}" for path in (ROOT / "shared" / ALGORITHMS).glob("[!_]*.py")} == listed
