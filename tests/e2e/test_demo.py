"""The demo as a newcomer runs it, on a seed of its own; then the platform again, serving what the demo built."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from armature_cli.demo.report import CLAIMS
from armature_cli.embedded import EmbeddedPlatform, Options

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

SEED = 20_011


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    armature = Path(sys.executable).with_name("armature")
    command = [str(armature), "demo", "--seed", str(SEED), "--data", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "answered five ways" in done.stdout
    return folder


@pytest.fixture(scope="module")
def report(data: Path) -> dict[str, Any]:
    return json.loads((data / "demo/report.json").read_text())


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text)
def test_claim_holds(report: dict[str, Any], claim: Any) -> None:
    assert claim.holds(report), f"{claim.measured(report)} against {claim.bound(report)}"


def test_report_is_complete(report: dict[str, Any]) -> None:
    assert set(report["asr"]) == {"base", "safe", "guided"}
    assert set(report["nll"]) == {"base", "safe"}
    assert set(report["mip"]) == {"base", "guided", "shuffled"}
    assert [len(row) for row in report["control_matrix"]] == [5] * 5
    assert report["seed"] == SEED
    assert report["timings"]["total"] > 0


def test_the_platform_serves_what_the_demo_built(data: Path) -> None:
    keys = json.loads((data / "demo/keys.json").read_text())
    assert (data / "demo/keys.json").stat().st_mode & 0o077 == 0
    with EmbeddedPlatform(Options(data, 0, 0, 0)) as platform:
        for key in keys.values():
            with openai.OpenAI(base_url=f"{platform.decoder_url}/v1", api_key=key, max_retries=8) as client:
                assert "answers" in [model.id for model in client.models.list()]
                answer = client.chat.completions.create(
                    model="answers",
                    messages=[{"role": "user", "content": "hello my dog is ill . can we talk ?"}],
                    temperature=0.7,
                    seed=1,
                )
                assert (answer.choices[0].message.content or "").endswith(".")
