"""The walk-through of the documentation, run command by command as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from armature_cli.local_platform.embedded import EmbeddedPlatform, Options
from tests.support.tiny_models import CHAT_TEMPLATE, save_tiny_checkpoint, tiny_llama

PAGE = Path(__file__).resolve().parents[2] / "docs/walkthrough.md"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_a_newcomer_gets_from_nothing_to_a_live_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny_checkpoint(tmp_path / "models/mine", tiny_llama(1), chat_template=CHAT_TEMPLATE)
    monkeypatch.setenv("ARMATURE_IMPORTS__ROOTS", json.dumps([str(model.parent)]))
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S))
    with EmbeddedPlatform(Options(tmp_path / "data", 0, 0, 0)) as platform:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ARMATURE_API_URL": platform.api_url,
            "ARMATURE_DECODER_URL": platform.decoder_url,
            "ARMATURE_API_KEY": platform.admin_key,
            "MODEL": str(model),
        }
        command = ["bash", "-e", "-o", "pipefail", "-c", commands]
        told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert told.returncode == 0, told.stdout[-3000:] + told.stderr[-3000:]
    answer = json.loads(told.stdout[told.stdout.rindex("\n{") :])
    applied = answer["alignment"]
    assert (applied["version"], applied["guidance_weight"]) == (1, 2.5)
    assert applied["preference"] == {"empathy": 0.75, "helpfulness": 0.25}
    assert (tmp_path / "walkthrough/report/report.json").is_file()
