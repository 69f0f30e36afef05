"""``python -m benchmarks harm-vector`` on a checkpoint of a few megabytes: every figure, and exactness."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.commands import app


@pytest.mark.slow
def test_the_command_prints_json_and_leaves_no_file(tmp_path: Path) -> None:
    options = ["--gib", "0.01", "--rounds", "1", "--folder", str(tmp_path), "--mergekit", "not-installed"]
    result = CliRunner().invoke(app, ["harm-vector", "--json", *options])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.output)
    assert figures["exact"] is True
    assert figures["speedup_vs_mergekit"] is None
    assert figures["shards"] == 4
    assert figures["entries_kept"] == round(0.1 * figures["entries_selected_from"])
    assert figures["imports_rss_bytes"] < figures["peak_rss_bytes"] < figures["peak_rss_limit_bytes"]
    assert figures["time_over_copy"] > 0
    assert figures["speedup_vs_naive"] > 0
    assert list(tmp_path.iterdir()) == []
