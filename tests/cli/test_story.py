"""The demo's story on a real platform, with too little training for its figures to mean anything."""

import json
import stat
from pathlib import Path

import pytest

from armature_cli.demo import plan
from armature_cli.demo.conversation import Conversation, ModelNotServed
from armature_cli.demo.story import PROFILE, TENANTS, WORKPLACE, tell
from armature_cli.local_platform.embedded import EmbeddedPlatform, Options

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

EFFORT = {
    "PRETRAINING_DIALOGUES": 240,
    "HARMFUL_PAIRS": 32,
    "PREFERENCE_PAIRS": 64,
    "ARM_STEPS": 2,
    "ATTACKS": 4,
    "BENIGN_PAIRS": 8,
    "QUESTIONS": 4,
    "PREFERENCES": 7,
    "QUESTIONS_PER_PREFERENCE": 2,
}
FIGURES = {
    "asr": {"base", "safe", "guided"},
    "nll": {"base", "safe"},
    "spearman": {"mean", "weakest"},
    "mip": {"base", "guided", "shuffled"},
}


def test_a_second_story_runs_and_the_profiles_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in EFFORT.items():
        assert hasattr(plan, name)
        monkeypatch.setattr(plan, name, value)
    options = Options(tmp_path, 0, 0, 0, WORKPLACE)
    with EmbeddedPlatform(options) as platform:
        for seed in (1, 2):
            tell(platform, seed)
            check_report(tmp_path / "demo/report.json", seed)
    story = capsys.readouterr().out
    assert "8/8" in story
    assert f"armature up --data {tmp_path}" in story
    keys_file = tmp_path / "demo/keys.json"
    assert stat.S_IMODE(keys_file.stat().st_mode) == 0o600
    keys = json.loads(keys_file.read_text())
    assert keys.keys() == TENANTS.keys()
    assert not any(key in story for key in keys.values())
    with EmbeddedPlatform(Options(tmp_path, 0, 0)) as restarted:
        for key in keys.values():
            check_answer(restarted, key)


def check_report(path: Path, seed: int) -> None:
    report = json.loads(path.read_text())
    assert report["seed"] == seed
    for name, parts in FIGURES.items():
        assert set(report[name]) == parts
        assert all(isinstance(value, float) for value in report[name].values())
    assert [len(row) for row in report["control_matrix"]] == [5] * 5
    assert {"diagonal_dominance", "degenerate", "permuted_control_asr"} <= report.keys()
    assert report["timings"]["total"] > 0
    assert len(report["answers"]["by_preference"]) == 5


def check_answer(platform: EmbeddedPlatform, key: str) -> None:
    with Conversation(platform.decoder_url, key) as conversation:
        with pytest.raises(ModelNotServed, match=PROFILE):
            conversation.wait_for("another", "0" * 64, seconds=5)
        assert conversation.ask(PROFILE, "hello my dog is ill . can we talk ?", max_tokens=8, seed=1)
