"""The repository's files, as the tests of its structure see them."""

from __future__ import annotations

from pathlib import Path

from tests.support.pages import ROOT

PACKAGES = ("shared", "services", "benchmarks")
FOLDERS = (*PACKAGES, "tests", "docs", "deploy", ".ci")

MODULES = sorted(path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))
"""The Python files of the product and the benchmarks."""

SOURCES = sorted([*MODULES, *(path for folder in ("tests", "docs") for path in (ROOT / folder).rglob("*.py"))])
"""Every Python file."""

PAGES = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])


def relative(path: Path) -> str:
    """The path from the repository's root."""
    return path.relative_to(ROOT).as_posix()


def _endings() -> frozenset[str]:
    files = [*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    parts = [path.relative_to(ROOT).parts for path in files if path.is_file() and "__pycache__" not in path.parts]
    return frozenset("/".join(names[start:]) for names in parts for start in range(len(names)))


TREE = _endings()
"""Every file's path from the root, and every ending of it: ``db/jobs.py`` stands for ``shared/armature/db/jobs.py``."""
