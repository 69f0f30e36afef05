"""The worker's entry points, without running any job."""

import os
import subprocess
import sys

import pytest

from armature_worker.settings import WorkerServiceSettings, WorkerSettings
from armature_worker.shutdown import ShutdownNotice


def run_python(program, **env):
    return subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )


def test_the_app_is_imported_without_torch():
    """Only the process that runs a job pays for it."""
    program = """
import sys
for name in ("torch", "transformers", "peft"):
    sys.modules[name] = None  # importing it raises
import armature_worker.app
print(armature_worker.app.app.tasks["armature.run_job"].name)
"""
    done = run_python(program)
    assert (done.returncode, done.stdout) == (0, "armature.run_job\n"), done.stderr


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("ARMATURE_WORKER__QUEUES", '["gpu"]')
    monkeypatch.setenv("ARMATURE_WORKER__DEVICE", "cuda:1,cuda:3")
    monkeypatch.setenv("ARMATURE_IMPORTS__HUB", "true")
    settings = WorkerServiceSettings()
    assert (settings.worker.queues, settings.worker.device, settings.imports.hub) == (["gpu"], "cuda:1,cuda:3", True)


@pytest.mark.parametrize(
    "field",
    [
        {"queues": []},
        {"queues": ["tpu"]},
        {"device": "tpu"},
        {"device": "cuda:0,cpu"},
        {"memory_bytes": 0},
        {"concurrency": 0},
    ],
)
def test_bad_settings_are_refused(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        WorkerSettings(**field)


def test_a_shutdown_notice_is_seen_by_this_workers_processes_only(tmp_path):
    notice = ShutdownNotice(tmp_path, 17)
    notice.post()
    assert ShutdownNotice(tmp_path, 17).is_posted()
    assert not ShutdownNotice(tmp_path, 18).is_posted()
    ShutdownNotice(tmp_path, 17).withdraw()
    assert not notice.is_posted()
    notice.withdraw()
