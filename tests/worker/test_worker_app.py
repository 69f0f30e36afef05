"""The worker's entry points, without running any job."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from armature_worker.host.process_flags import ProcessFlag
from armature_worker.settings import WorkerServiceSettings, WorkerSettings
from tests.support.platform import run_platform
from tests.support.processes import stop, wait_until


def run_python(program, **env):
    return subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )


@pytest.mark.process
def test_the_app_is_imported_without_torch():
    """Only processes that run jobs spend its memory and import time."""
    program = """
import sys
for name in ("torch", "transformers", "peft"):
    sys.modules[name] = None  # importing it raises
import armature_worker.app
print(armature_worker.app.app.tasks["armature.run_job"].name)
"""
    done = run_python(program)
    assert (done.returncode, done.stdout) == (0, "armature.run_job\n"), done.stderr


@pytest.mark.process
def test_startup_pauses_garbage_collection_even_if_it_fails():
    program = """
import gc
from armature.startup import startup_without_gc
try:
    with startup_without_gc():
        assert not gc.isenabled()
        raise ImportError
except ImportError:
    print(gc.isenabled(), gc.get_freeze_count() > 0)
"""
    done = run_python(program)
    assert (done.returncode, done.stdout) == (0, "True True\n"), done.stderr


def test_a_worker_shows_life_once_a_process_has_what_jobs_need(tmp_path, sqlite_settings, valkey_server):
    alive = tmp_path / "alive"
    with run_platform(tmp_path, sqlite_settings, valkey_server) as platform:
        worker = platform.start_worker(ARMATURE_LIVENESS__FILE=str(alive), ARMATURE_WORKER__PRELOAD="true")
        wait_until(alive.exists, 120, "a sign of life")
        assert any("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in children(worker.pid))
        assert ProcessFlag(tmp_path / "work", "warm", worker.pid).is_set()
        stop(worker)
        assert not ProcessFlag(tmp_path / "work", "warm", worker.pid).is_set()


def children(parent: int) -> list[int]:
    """List the child processes of ``parent``."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if int(status.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(status.parent.name))
    return found


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


def test_a_flag_is_seen_by_this_workers_processes_only(tmp_path):
    flag = ProcessFlag(tmp_path / "work", "shutdown", 17)
    flag.set()
    assert ProcessFlag(tmp_path / "work", "shutdown", 17).is_set()
    assert not ProcessFlag(tmp_path / "work", "shutdown", 18).is_set()
    assert not ProcessFlag(tmp_path / "work", "warm", 17).is_set()
    ProcessFlag(tmp_path / "work", "shutdown", 17).clear()
    assert not flag.is_set()
    flag.clear()
