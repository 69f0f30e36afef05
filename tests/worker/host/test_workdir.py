"""Private directories: removed with their job, or after their process was killed."""

import signal
import subprocess
import sys

import pytest

from armature_worker.host.workdir import private_directory, remove_stale_directories


def test_only_the_user_may_enter_and_nothing_is_left(tmp_path):
    def fail_inside() -> None:
        with private_directory(tmp_path, "job_1") as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
            (folder / "weights").write_text("harmful")
            raise RuntimeError("recipe failed")

    with pytest.raises(RuntimeError, match="recipe failed"):
        fail_inside()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_only_directories_of_dead_processes_are_removed(tmp_path):
    program = f"""
from pathlib import Path
from armature_worker.host.workdir import private_directory
with private_directory(Path({str(tmp_path)!r}), "job_2") as folder:
    (folder / "weights").write_text("harmful")
    print("ready", flush=True)
    input()
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child, private_directory(tmp_path, "job_1") as mine:
        assert child.stdout.readline() == "ready\n"
        assert remove_stale_directories(tmp_path) == []
        child.send_signal(signal.SIGKILL)
        child.wait()
        [stale] = remove_stale_directories(tmp_path)
        assert stale.startswith("job_2-")
        assert [folder.name for folder in tmp_path.iterdir()] == [mine.name]
