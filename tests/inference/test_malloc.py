"""A process keeps what its tensors leave, and gives it back when told to."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import re, sys, torch
from armature.inference.malloc import give_back_freed_memory, keep_freed_memory

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

if sys.argv[1] == "keep":
    keep_freed_memory()
before = resident()
tables = [torch.ones(1 << 18) for _ in range(128)]
assert resident() - before >= 128
del tables
left = resident() - before
give_back_freed_memory()
print(left, resident() - before)
"""

THREADS = """
import re, threading, torch
from armature.inference.malloc import give_back_freed_memory, keep_freed_memory

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

def hold():
    tables = [torch.ones(1 << 18) for _ in range(32)]
    everyone_holds.wait()

keep_freed_memory()
before, everyone_holds = resident(), threading.Barrier(8)
threads = [threading.Thread(target=hold) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
left = resident() - before
give_back_freed_memory()
print(left, resident() - before)
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["keep", "return"])
def test_what_tensors_leave_stays_until_it_is_given_back(how: str) -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    left, afterwards = (int(mebibytes) for mebibytes in run.stdout.split())
    assert left >= 120 if how == "keep" else left < 64
    assert afterwards < 16


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_threads_leave_is_given_back_too() -> None:
    run = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    left, afterwards = (int(mebibytes) for mebibytes in run.stdout.split())
    assert left >= 240
    assert afterwards < 16
