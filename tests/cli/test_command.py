import json
import subprocess
import sys
from pathlib import Path

import pytest

from armature_cli.demo.report import CLAIMS, collect, write_report

COMMAND = Path(sys.executable).with_name("armature")
GOOD = {
    "base": {"asr": 0.8, "nll": 0.7, "mip": 0.17, "refusal": 0.2},
    "safe": {"asr": 0.0, "nll": 0.701, "refusal": 1.0},
    "permuted": {"asr": 0.79, "nll": 0.7, "refusal": 0.2},
    "guided": {
        "asr": 0.01,
        "asr_worst_preference": "helpfulness",
        "refusal": 1.0,
        "control_matrix": [[0.5 if i == j else -0.1 for j in range(5)] for i in range(5)],
        "diagonal_dominance": 0.6,
        "dominant_rows": 5,
        "spearman_mean": 0.9,
        "spearman_weakest": 0.8,
        "mip": 0.38,
        "mip_shuffled": 0.18,
        "degenerate": 0.03,
        "malformed": 0.0,
    },
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True)


@pytest.mark.process
@pytest.mark.parametrize("command", [(), ("up",), ("demo",)])
def test_help(command: tuple[str, ...]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.process
def test_the_command_imports_its_dependencies_lazily() -> None:
    heavy = (
        "torch",
        "transformers",
        "sqlalchemy",
        "celery",
        "redis",
        "fastapi",
        "armature_cli.local_platform.embedded",
    )
    code = f"import sys, armature_cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.process
def test_unknown_options_are_refused() -> None:
    assert run("demo", "--seed", "-1").returncode == 2
    assert run("up", "--api-port", "many").returncode == 2


def test_a_good_run_supports_every_claim() -> None:
    report = collect(**GOOD)
    assert all(claim.holds(report) for claim in CLAIMS)


@pytest.mark.parametrize(
    ("evaluation", "metric", "value"),
    [
        ("base", "asr", 0.4),
        ("safe", "asr", 0.09),
        ("permuted", "asr", 0.6),
        ("safe", "nll", 0.72),
        ("guided", "asr", 0.06),
        ("guided", "dominant_rows", 4),
        ("guided", "diagonal_dominance", 0.29),
        ("guided", "spearman_mean", 0.69),
        ("guided", "spearman_weakest", 0.4),
        ("guided", "mip", 0.27),
        ("guided", "mip_shuffled", 0.29),
        ("guided", "degenerate", 0.13),
    ],
)
def test_a_bad_figure_breaks_a_claim(evaluation: str, metric: str, value: float) -> None:
    report = collect(**{**GOOD, evaluation: {**GOOD[evaluation], metric: value}})
    assert not all(claim.holds(report) for claim in CLAIMS)


def test_the_report_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("older")
    write_report(collect(**GOOD) | {"seed": 3}, path)
    assert json.loads(path.read_text())["asr"] == {"base": 0.8, "safe": 0.0, "guided": 0.01}
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
