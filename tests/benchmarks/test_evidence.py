"""``python -m benchmarks evidence``: its tables fit the specs, and no job of a small batch runs twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner, Result

from armature_cli.demo import plan
from benchmarks.commands import app
from benchmarks.evidence.batch import Row, as_markdown
from benchmarks.evidence.experiment import change_spec
from benchmarks.evidence.tables import SWEPT, TABLES, Edit, Variation

EFFORT = {
    "PRETRAINING_DIALOGUES": 240,
    "HARMFUL_PAIRS": 32,
    "PREFERENCE_PAIRS": 64,
    "ATTACKS": 4,
    "SWEEP_ATTACKS": 4,
    "OPENINGS": 150,
    "BENIGN_PAIRS": 8,
    "QUESTIONS": 4,
    "PREFERENCES": 7,
    "QUESTIONS_PER_PREFERENCE": 2,
    "MAX_TOKENS": 24,
}
DATA = plan.Datasets(*["data"] * 7)
VARIATIONS = [
    (name, variation)
    for name, table in TABLES.items()
    for variation in table.variations
    if isinstance(variation, Variation)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results that the tests share: the first test trains the base model."""
    return tmp_path_factory.mktemp("evidence")


@pytest.fixture
def little_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in EFFORT.items():
        assert hasattr(plan, name)
        monkeypatch.setattr(plan, name, value)


def bench(folder: Path, *arguments: str) -> Result:
    options = ["--folder", str(folder), "--seed", "1", "--steps", "2"]
    return CliRunner().invoke(app, ["evidence", *options, *arguments])


@pytest.mark.parametrize(("table", "variation"), VARIATIONS, ids=lambda value: getattr(value, "name", value))
def test_a_variation_fits_the_specs_and_is_unlike_its_neighbours(table: str, variation: Variation) -> None:
    change_spec(plan.harm_vector_spec("base", DATA, 0), variation.harm_vector or {})
    change_spec(plan.arm_spec("base", "vector", DATA, 0), variation.arm or {})
    change_spec(plan.evaluation_spec(plan.Subject("base"), DATA, 0), variation.evaluation)
    others = [other for of, other in VARIATIONS if of == table and other is not variation]
    assert variation.name not in {other.name for other in others}
    settings = [(v.harm_vector, v.arm, v.evaluation, v.scale, v.guard) for v in (variation, *others)]
    assert settings[0] not in settings[1:]


def test_a_change_of_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="lairs"):
        change_spec(plan.arm_spec("base", None, DATA, 0), {"adapter": {"lairs": "all"}})


@pytest.mark.slow
@pytest.mark.usefixtures("little_effort")
def test_a_second_batch_runs_no_job_again(folder: Path) -> None:
    first = bench(folder, "--table", "backbone", "--json")
    assert first.exit_code == 0, first.output
    rows = [json.loads(line) for line in first.stdout.splitlines()]
    assert [row["variation"] for row in rows] == ["safe base", "plain base"]
    for row in rows:
        assert row["seeds"] == [1]
        assert set(TABLES[row["table"]].columns) <= set(row["figures"][0])
        assert row["means"] == row["figures"][0]
    assert rows[0]["figures"][0]["nll_rise"] != 0
    assert rows[1]["figures"][0]["nll_rise"] == 0
    assert first.stderr.count("arm.train") == 2
    again = bench(folder, "--table", "backbone")
    assert again.exit_code == 0, again.output
    assert again.stderr.splitlines() == ["backbone: safe base", "backbone: plain base"]
    assert again.stdout.count("\n| ") == 2
    assert not list(folder.rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.usefixtures("little_effort")
def test_a_table_of_edits_has_every_point_of_one_sweep(folder: Path) -> None:
    done = bench(folder, "--table", "sweep", "--json")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    edits = [edit for edit in TABLES["sweep"].variations if isinstance(edit, Edit)]
    assert [row["variation"] for row in rows] == [edit.name for edit in edits]
    assert len({edit.name for edit in edits}) == len(edits) == 1 + SWEPT.points + 3 + 1
    assert done.stderr.count("harm_vector.sweep") == 1
    base, *grid = [row["figures"][0] for row in rows[: 1 + SWEPT.points]]
    assert (base["nll_rise"], base["edit_norm"]) == (0.0, 0.0)
    for figures in grid:
        assert figures["nll_rise_low"] <= figures["nll_rise"] <= figures["nll_rise_high"]
        assert figures["asr"] <= figures["asr_or_degenerate"] <= figures["asr_or_degenerate_high"]
        assert figures["edit_norm"] > 0
    assert rows[-1]["figures"] == [{}]  # of four prompts none is enough for a knee
    assert (folder / "figures/sweep-1.svg").read_bytes().startswith(b"<?xml")


def test_an_unknown_table_is_refused_by_name(tmp_path: Path) -> None:
    result = bench(tmp_path, "--table", "nonsense")
    assert result.exit_code == 2
    assert "nonsense" in result.output


def test_a_cell_holds_the_mean_and_every_seed() -> None:
    columns = TABLES["layers"].columns
    seeds = tuple(dict.fromkeys(columns, value) for value in (0.5, -0.05, 1.0))
    lines = as_markdown("layers", [Row("layers", "upper half", (0, 1, 2), seeds)]).splitlines()
    assert lines[2].split(" | ")[1] == ".48 (.50 -.050 1.00)"
    assert len({line.count("|") for line in lines}) == 1
