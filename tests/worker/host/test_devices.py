"""Devices: the list, their memory, and leases that two jobs never share."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from armature.errors import InsufficientDevices, InsufficientMemory
from armature_worker.host.devices import (
    DeviceTable,
    Memory,
    Needs,
    NoDeviceFree,
    host_memory,
    list_devices,
    probe_cuda,
    probe_memory,
)

GIB = 1 << 30
PAIR = ("cuda:0", "cuda:1")


def table(tmp_path, memory=None, names=PAIR):
    memory = memory or dict.fromkeys(names, Memory(80 * GIB, 80 * GIB))
    return DeviceTable(names, tmp_path, lambda asked: {name: memory[name] for name in asked})


def test_a_setting_names_devices():
    assert list_devices("cpu") == ("cpu",)
    assert list_devices("cuda") == ("cuda:0",)
    assert list_devices("cuda:1,cuda:3") == ("cuda:1", "cuda:3")
    assert list_devices("auto") == (tuple(f"cuda:{n}" for n in range(torch.cuda.device_count())) or ("cpu",))


@pytest.mark.process
def test_devices_are_probed_only_where_there_is_a_driver(monkeypatch):
    installed = "libc.so.6"  # as the driver is on a machine with devices
    assert list(probe_cuda(installed)) == [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    monkeypatch.setattr(sys, "executable", "/nowhere")
    assert probe_cuda("libmissing.so.1") == {}


def test_a_device_is_held_by_one_job_at_a_time(tmp_path):
    first, second = table(tmp_path), table(tmp_path)  # as two processes see them
    with first.lease(Needs()) as one, second.lease(Needs()) as other:
        assert {*one, *other} == set(PAIR)
        with pytest.raises(NoDeviceFree), first.lease(Needs()):
            pass
    with first.lease(Needs(processes=2)) as both:
        assert both == PAIR
        with pytest.raises(NoDeviceFree), second.lease(Needs()):
            pass


def test_a_refused_lease_holds_no_device(tmp_path):
    devices = table(tmp_path)
    with devices.lease(Needs()):
        with pytest.raises(NoDeviceFree), devices.lease(Needs(processes=2)):
            pass
        with devices.lease(Needs()) as other:
            assert other == ("cuda:1",)


@pytest.mark.process
def test_a_killed_process_leaves_its_device_free(tmp_path):
    program = f"""
import sys, time
from pathlib import Path
from armature_worker.host.devices import DeviceTable, Needs
with DeviceTable(["cuda:0"], Path({str(tmp_path)!r})).lease(Needs()):
    print("held", flush=True)
    time.sleep(600)
"""
    devices = table(tmp_path, names=("cuda:0",))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(NoDeviceFree), devices.lease(Needs()):
            pass
        os.kill(holder.pid, signal.SIGKILL)
    with devices.lease(Needs()) as held:
        assert held == ("cuda:0",)


def test_a_device_without_room_is_passed_over(tmp_path):
    devices = table(tmp_path, {"cuda:0": Memory(3 * GIB, 80 * GIB), "cuda:1": Memory(50 * GIB, 80 * GIB)})
    with devices.lease(Needs(bytes=10 * GIB)) as held:
        assert held == ("cuda:1",)
    with pytest.raises(NoDeviceFree, match=r"needs 60.50 GiB, 50.00 GiB free") as waits:
        devices.lease(Needs(bytes=60 * GIB, advice="lower x")).__enter__()
    wait = waits.value.waiting_for
    assert (wait.reason, wait.free_bytes) == ("memory", 50 * GIB)
    assert wait.needs_bytes == 60 * GIB + (512 << 20)  # with what a process takes before its first tensor
    assert wait.remedy.endswith("lower x")
    with pytest.raises(NoDeviceFree), devices.lease(Needs(processes=2, bytes=10 * GIB)):
        pass


def test_what_can_never_fit_is_refused_with_both_sizes(tmp_path):
    devices = table(tmp_path, {"cuda:0": Memory(GIB, 24 * GIB), "cuda:1": Memory(0, 80 * GIB)})
    with pytest.raises(InsufficientMemory, match=rf"\d+ bytes of a device, the worker has at most {80 * GIB}; lower x"):
        devices.lease(Needs(bytes=81 * GIB, advice="lower x")).__enter__()
    with pytest.raises(InsufficientMemory, match=f"at most {24 * GIB};"):  # the second largest must do too
        devices.lease(Needs(processes=2, bytes=30 * GIB)).__enter__()
    with pytest.raises(InsufficientDevices, match="3 devices, the worker has 2"):
        devices.lease(Needs(processes=3)).__enter__()


def test_the_cpu_is_shared_and_its_memory_counts_once(tmp_path):
    devices = table(tmp_path, {"cpu": Memory(8 * GIB, 16 * GIB)}, names=("cpu",))
    with devices.lease(Needs()) as one, devices.lease(Needs(processes=2, bytes=4 * GIB)) as two:
        assert (one, two) == (("cpu",), ("cpu", "cpu"))
    with pytest.raises(NoDeviceFree), devices.lease(Needs(processes=3, bytes=4 * GIB)):
        pass
    with pytest.raises(InsufficientMemory), devices.lease(Needs(processes=5, bytes=4 * GIB)):
        pass


def test_this_machines_memory():
    memory = probe_memory(["cpu"])["cpu"]
    assert 0 < memory.free <= memory.total


@pytest.mark.parametrize(
    ("group", "files"),
    [
        ("0::/job\n", {"job": {"memory.max": "2147483648", "memory.current": "1073741824"}}),
        (
            "4:memory:/job\n0::/\n",
            {"memory/job": {"memory.limit_in_bytes": "2147483648", "memory.usage_in_bytes": "1073741824"}},
        ),
        ("0::/job\n", {"": {"memory.max": "2147483648", "memory.current": "1073741824"}}),  # a container's own view
    ],
)
def test_the_limit_of_a_control_group_counts(tmp_path, group, files):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(
        "MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\nHugePages_Total: 0\n"
    )
    (proc / "self/cgroup").write_text(group)
    cgroups.mkdir()
    assert host_memory(proc, cgroups) == Memory(8 * GIB, 16 * GIB)
    for folder, values in files.items():
        (cgroups / folder).mkdir(parents=True, exist_ok=True)
        for name, value in {**values, "memory.stat": "inactive_file 4096\nanon 1"}.items():
            (cgroups / folder / name).write_text(value + "\n")
    assert host_memory(proc, cgroups) == Memory(GIB + 4096, 2 * GIB)
    for limit in (cgroups / next(iter(files))).glob("memory.[ml][ai]*"):
        if limit.name == "memory.max":
            limit.write_text("max\n")
            assert host_memory(proc, cgroups) == Memory(8 * GIB, 16 * GIB)
