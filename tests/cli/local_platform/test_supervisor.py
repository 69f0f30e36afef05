import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from armature_cli.local_platform.die_with_parent import die_with_parent
from armature_cli.local_platform.supervisor import Supervisor
from tests.support.processes import wait_until

pytestmark = pytest.mark.process

NOTES_ITS_END = """
import signal, sys, time
def end(*_):
    with open(sys.argv[1], "a") as notes:
        notes.write(sys.argv[2] + " ends\\n")
    sys.exit()
signal.signal(signal.SIGTERM, end)
with open(sys.argv[1], "a") as notes:
    notes.write(sys.argv[2] + " runs\\n")
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    supervisor.stop()


def add(supervisor: Supervisor, name: str, notes: Path) -> None:
    command = die_with_parent([sys.executable, "-c", NOTES_ITS_END, str(notes), name])
    supervisor.add(name, lambda: subprocess.Popen(command))


def lines(notes: Path) -> list[str]:
    return notes.read_text().splitlines() if notes.exists() else []


def test_children_end_in_reverse_order_even_after_a_restart(supervisor: Supervisor, tmp_path: Path) -> None:
    """A child dies with the thread that started it; the thread that restarts children must not end before they do."""
    notes = tmp_path / "notes"
    for name in ("first", "second"):
        add(supervisor, name, notes)
    wait_until(lambda: len(lines(notes)) == 2)
    os.kill(supervisor.children["first"].pid, signal.SIGKILL)
    wait_until(lambda: len(lines(notes)) == 3, what="the restarted child")
    supervisor.stop()
    assert lines(notes)[3:] == ["second ends", "first ends"]


def test_a_child_that_keeps_ending_is_restarted_with_back_off(supervisor: Supervisor) -> None:
    child = supervisor.add("hopeless", lambda: subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"]))
    wait_until(lambda: child.restarts >= 2)
    assert child.back_off >= 2.0


def test_a_restart_that_fails_is_tried_again(supervisor: Supervisor, tmp_path: Path) -> None:
    program = tmp_path / "program"
    notes = tmp_path / "notes"
    script = f"#!{sys.executable}\nimport time\nopen({str(notes)!r}, 'a').write('runs\\n')\ntime.sleep(60)\n"

    def install() -> None:
        program.write_text(script)
        program.chmod(0o700)

    install()
    child = supervisor.add("program", lambda: subprocess.Popen([program]))
    wait_until(lambda: lines(notes) == ["runs"])
    program.unlink()
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: child.restarts >= 1, what="a failed restart")
    install()
    wait_until(lambda: lines(notes) == ["runs", "runs"], what="a restart that works")


def test_stopping_twice_is_harmless(supervisor: Supervisor, tmp_path: Path) -> None:
    add(supervisor, "only", tmp_path / "notes")
    supervisor.stop()
    supervisor.stop()
    assert supervisor.children["only"].process.returncode is not None
