"""The worker's devices: which there are, what memory they have left, and which job holds which.

A lease is a lock on a file of the work directory. The kernel drops it with the process that holds it, however that
ends, so no device is ever lost to a job that is gone. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from armature.errors import InsufficientDevices, InsufficientMemory

CPU = "cpu"
_CUDA_DRIVER = "libcuda.so.1"

_CUDA_CONTEXT_BYTES = 512 << 20
"""What a process takes of a GPU before its first tensor: the context, kernels, and the libraries' workspaces."""


class NoDeviceFree(Exception):
    """The job fits on this worker's devices, and not now: others hold them, or their memory."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    free: int
    total: int


@dataclass(frozen=True)
class Needs:
    """What a job asks for: one device for each of its processes, with so many bytes (0: it can not be said)."""

    processes: int = 1
    bytes: int = 0
    advice: str = ""
    """What to change in the spec if no device has as much."""


MemoryProbe = Callable[[Sequence[str]], Mapping[str, Memory]]
"""Memory by name of device, now."""


def list_devices(setting: str) -> tuple[str, ...]:
    """The devices that a worker's setting stands for.

    Args:
        setting: ``auto`` (every GPU, or the CPU where there is none), ``cuda`` (the first GPU), or names.
    """
    if setting == "auto":
        return tuple(probe_cuda()) or (CPU,)
    return tuple("cuda:0" if name == "cuda" else name for name in setting.split(","))


def probe_cuda() -> dict[str, Memory]:
    """The CUDA devices of this machine, asked for in a process that ends with the answer; without a driver, none."""
    try:
        ctypes.CDLL(_CUDA_DRIVER)
    except OSError:
        return {}
    command = [sys.executable, "-m", "armature_worker.host.device_probe"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: Memory(free, total) for name, (free, total) in json.loads(answer).items()}


def probe_memory(names: Sequence[str]) -> dict[str, Memory]:
    """What the devices say themselves; the CPU's memory is the host's, or what the container may use of it."""
    return {CPU: host_memory()} if CPU in names else probe_cuda()


def fixed_memory(size: int, names: Sequence[str]) -> dict[str, Memory]:
    """The same for every device, whatever it says."""
    return dict.fromkeys(names, Memory(size, size))


def free_memory(device: str, probe: MemoryProbe) -> dict[str, int]:
    """Bytes that are free on a device and on the host."""
    return {name: probe([name])[name].free for name in {device, CPU}}


def host_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Memory:
    """Memory that processes here may use: the host's, cut to the limit of the control group (version 2 or 1)."""
    lines = (line.split() for line in (proc / "meminfo").read_text().splitlines())
    host = {words[0]: int(words[1]) * 1024 for words in lines}
    free, total = host["MemAvailable:"], host["MemTotal:"]
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        for folder in _control_groups(proc, cgroups):
            with contextlib.suppress(OSError, ValueError):  # not this version, or "max": no limit
                most = int((folder / limit).read_text())
                total = min(total, most)
                free = min(free, max(0, most - int((folder / used).read_text()) + _cache(folder)))
    return Memory(free, total)


def _control_groups(proc: Path, cgroups: Path) -> list[Path]:
    groups = [line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines()]
    own = [(cgroups / controllers, path) for _, controllers, path in groups if controllers in ("", "memory")]
    return [folder for root, path in own for folder in {root, root / path.lstrip("/")}]


def _cache(group: Path) -> int:
    """Page cache that the kernel gives up before it runs out."""
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


class DeviceTable:
    """Hands out devices, one job each; the CPU is shared by as many jobs as the worker runs."""

    def __init__(self, names: Sequence[str], work_dir: Path, probe: MemoryProbe = probe_memory) -> None:
        self.names = tuple(names)
        self._work_dir = work_dir
        self._probe = probe

    @contextlib.contextmanager
    def lease(self, needs: Needs) -> Iterator[tuple[str, ...]]:
        """Hold as many devices as the job has processes, each with the memory that one of them needs.

        Raises:
            InsufficientDevices: The worker does not have so many.
            InsufficientMemory: Not even the empty devices have so much.
            NoDeviceFree: Later it may work.
        """
        with contextlib.ExitStack() as stack:
            if self.names == (CPU,):
                shared = Needs(1, needs.processes * needs.bytes, needs.advice)
                held = list(self._with_room(shared)) * needs.processes
            else:
                room = self._with_room(replace(needs, bytes=needs.bytes and needs.bytes + _CUDA_CONTEXT_BYTES))
                held = list(islice((name for name in room if self._lock(name, stack)), needs.processes))
            if len(held) < needs.processes:
                raise NoDeviceFree(f"devices wanted: {needs.processes}, with {needs.bytes} bytes free each")
            yield tuple(held)

    def _with_room(self, needs: Needs) -> Sequence[str]:
        """The devices that have the memory now."""
        if needs.processes > len(self.names):
            raise InsufficientDevices(
                f"the job wants {needs.processes} devices, and the worker has {len(self.names)}",
                param="spec.training.processes",
            )
        if not needs.bytes:
            return self.names
        memory = self._probe(self.names)
        largest = sorted(memory[name].total for name in self.names)[-needs.processes]
        if needs.bytes > largest:
            raise InsufficientMemory(
                f"the job needs about {needs.bytes} bytes of a device, and {largest} are all that there are; "
                f"{needs.advice}",
                param="spec",
            )
        return [name for name in self.names if memory[name].free >= needs.bytes]

    def _lock(self, name: str, stack: contextlib.ExitStack) -> bool:
        self._work_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._work_dir / f"device-{name}", os.O_RDWR | os.O_CREAT, 0o600)
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
