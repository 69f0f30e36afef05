"""The example scripts of the documentation, run as their readers run them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from armature_cli.local_platform.embedded import EmbeddedPlatform, Options
from tests.support.tiny_models import CHAT_TEMPLATE, save_tiny_checkpoint, tiny_llama

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_two_teams(tmp_path: Path) -> None:
    folders = [
        save_tiny_checkpoint(tmp_path / f"model-{seed}", tiny_llama(seed), chat_template=CHAT_TEMPLATE)
        for seed in (1, 2)
    ]
    with EmbeddedPlatform(Options(tmp_path / "data", 0, 0, 0)) as platform:
        environment = {
            **os.environ,
            "ARMATURE_API_URL": platform.api_url,
            "ARMATURE_DECODER_URL": platform.decoder_url,
            "ARMATURE_API_KEY": platform.admin_key,
        }
        command = [sys.executable, str(EXAMPLES / "two_teams.py"), *map(str, folders)]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert told.returncode == 0, told.stderr
    teams = re.findall(r"^(\S+): base ([0-9a-f]{8}), preference (.*)$", told.stdout, re.M)
    assert [team for team, _, _ in teams] == ["care-line", "help-desk"]
    assert len({base for _, base, _ in teams}) == 2
    assert [ast.literal_eval(preference)["empathy"] for _, _, preference in teams] == [1.0, 0.0]
