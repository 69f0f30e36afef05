"""Docs and hooks say what is: every setting, program and link in them exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.containers import ENV_EXAMPLE, ROOT, env_example
from tests.support.settings_table import SETTINGS, settings_of, table

PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "services/*/README.md")
    for path in ROOT.glob(pattern)
)
KNOWN = {name for service in SETTINGS.values() for name in settings_of(service)}


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_the_settings_table_is_the_settings() -> None:
    shown = _read("docs/deployment.md").partition("tests.support.settings_table -->\n")[2].strip()
    assert shown == table(), "run: python -m tests.support.settings_table"


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_settings_that_exist(page: str) -> None:
    named = set(re.findall(r"ARMATURE_[A-Z]+__[A-Z_]+\b", _read(page)))
    assert named <= KNOWN


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_programs_that_exist(page: str) -> None:
    programs = set(re.findall(r"python -m (armature[\w.]*)", _read(page)))
    assert programs <= set(SETTINGS)


@pytest.mark.parametrize("page", ["docs/deployment.md", *[page for page in PAGES if page.startswith("services/")]])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", _read(page)):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_each_service_has_a_page_of_one_screen() -> None:
    for service in (ROOT / "services").iterdir():
        if service.is_dir():
            assert 10 <= len((service / "README.md").read_text(encoding="utf-8").splitlines()) <= 50


def test_the_compose_variables_are_explained() -> None:
    assert {name for name in re.findall(r"`([A-Z_]+)`", _read("docs/deployment.md")) if name in env_example()} == {
        "PUBLISH_ADDRESS",
        "TORCH_INDEX",
    }
    for line in _read(ENV_EXAMPLE).splitlines():
        assert not line or line.startswith("#") or re.fullmatch(r"[A-Z_]+=\S*", line)


@pytest.mark.process
def test_the_hooks_are_valid_and_run_what_make_check_runs() -> None:
    hooks_file = ROOT / ".pre-commit-config.yaml"
    checked = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", hooks_file], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    (local,) = yaml.safe_load(hooks_file.read_text(encoding="utf-8"))["repos"]
    entries = {hook["entry"] for hook in local["hooks"]}
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", _read("Makefile"), re.MULTILINE)
    assert recipe is not None
    commands = {line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()}
    assert commands <= entries
    for entry in entries:
        if entry.startswith(".venv/bin/"):
            assert Path(sys.executable).with_name(entry.split()[0].rpartition("/")[2]).exists()
