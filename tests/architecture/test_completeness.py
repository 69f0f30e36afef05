"""Each job kind has all its parts, and the test counts that it saw them all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from armature.contracts.specs import SPECS, parse_spec

ROOT = Path(__file__).resolve().parents[2]


def stem(kind: str) -> str:
    """The file stem of a kind: the module that its spec lives in."""
    return SPECS[kind].__module__.rsplit(".", 1)[1]


def test_there_are_kinds() -> None:
    assert set(SPECS) == {
        "base_model.import",
        "harm_vector.build",
        "harm_vector.sweep",
        "arm.train",
        "arm.extend",
        "arm.export",
        "arm.import",
        "checkpoint.export",
        "evaluation.run",
        "pairs.generate",
    }


@pytest.mark.parametrize("kind", sorted(SPECS))
def test_kind_is_complete(kind: str) -> None:
    recipe = ROOT / f"services/worker/armature_worker/recipes/{stem(kind)}.py"
    page = ROOT / f"docs/methods/{stem(kind)}.md"
    assert recipe.is_file()
    assert page.is_file()
    assert list((ROOT / "tests/worker/recipes").glob(f"test_*{stem(kind)}*.py"))
    examples = re.findall(r"```json\n(.*?)```", page.read_text(), re.S)
    parsed = [parse_spec(json.loads(example)) for example in examples]
    assert kind in {spec.kind for spec in parsed}, f"{page.name} shows no example of {kind}"
    assert f"`{kind}`" in (ROOT / "docs/api.md").read_text()


def test_stages_are_complete() -> None:
    guidance = ROOT / "services/decoder/armature_decoder/guidance"
    table = (guidance / "__init__.py").read_text()
    stems = {path.stem for path in guidance.glob("[!_]*.py")} - {"base"}
    assert {"arm", "sda"} <= stems
    for stem in stems:
        assert f"plan_{stem}" in table
        page = (ROOT / f"docs/methods/{stem}.md").read_text()
        assert f"| decoder stage | `armature_decoder/guidance/{stem}.py:plan_{stem}`" in page
        assert "`tests/decoder/test_" in page


@pytest.mark.process
def test_recipes_table_matches_specs_and_imports_no_torch() -> None:
    """In a process of its own: tests of the worker's shell add recipes to the table."""
    code = (
        "import sys, armature_worker.app\n"
        "from armature.contracts.specs import SPECS\n"
        "from armature_worker.recipes import RECIPES\n"
        "assert set(RECIPES) == set(SPECS), RECIPES\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


BANNED_NAMES = {"utils", "helpers", "manager", "common"}
BANNED_CODE = {
    r"\btorch\.load\(": "weights come from safetensors only",
    r"trust_remote_code\s*=\s*True": "no remote code",
    r"\bimport pickle\b": "no pickle",
}


def sources() -> list[Path]:
    files = [path for folder in ("shared", "services") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    return files


def test_no_vague_module_names() -> None:
    assert [path for path in sources() if path.stem in BANNED_NAMES] == []


@pytest.mark.parametrize("pattern", sorted(BANNED_CODE))
def test_no_banned_code(pattern: str) -> None:
    found = [str(path) for path in sources() if re.search(pattern, path.read_text())]
    assert found == [], BANNED_CODE[pattern]


def test_only_the_edge_commits() -> None:
    """Services flush; the request's dependency, the worker's shell, the relay and the bootstrap commit."""
    services = [path for path in sources() if path.name == "service.py"]
    assert services
    assert [path for path in services if ".commit(" in path.read_text()] == []
