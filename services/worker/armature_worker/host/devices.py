"""The worker's devices: which exist, how much memory each has free, and which job holds which.

A lease is a lock on a file of the work directory. The kernel releases it with the process that holds it, however that
process ends, so a dead job never keeps a device. Nothing here imports torch.
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

from armature.contracts.jobs import WaitingFor
from armature.errors import InsufficientDevices, InsufficientMemory

CPU = "cpu"
CUDA_DRIVER = "libcuda.so.1"

_CUDA_CONTEXT_BYTES = 512 << 20
"""GPU memory of a process before its first tensor: the context, kernels, and the libraries' workspaces."""


class NoDeviceFree(Exception):
    """The job fits on this worker's devices, but not now.

    Other jobs or processes hold them, or their memory.
    """

    def __init__(self, waiting_for: WaitingFor) -> None:
        super().__init__(waiting_for.message())
        self.waiting_for = waiting_for


@dataclass(frozen=True)
class Memory:
    """Memory of one device, in bytes."""

    free: int
    total: int


@dataclass(frozen=True)
class Needs:
    """What a job needs: one device per process, each with ``bytes`` of memory (0: unknown)."""

    processes: int = 1
    bytes: int = 0
    advice: str = ""
    """What to change in the spec if no device has that much memory."""


MemoryProbe = Callable[[Sequence[str]], Mapping[str, Memory]]
"""Device names -> memory of each, as of now."""


def list_devices(setting: str) -> tuple[str, ...]:
    """List the devices that the worker's setting stands for.

    Args:
        setting: ``auto`` (every GPU, or the CPU where there is none), ``cuda`` (the first GPU), or names.
    """
    if setting == "auto":
        return tuple(probe_cuda()) or (CPU,)
    return tuple("cuda:0" if name == "cuda" else name for name in setting.split(","))


def probe_cuda(driver: str = CUDA_DRIVER) -> dict[str, Memory]:
    """Query the memory of this machine's CUDA devices in a short-lived process.

    Without the ``driver`` library the result is empty.
    """
    try:
        ctypes.CDLL(driver)
    except OSError:
        return {}
    command = [sys.executable, "-m", "armature_worker.host.device_probe"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: Memory(free, total) for name, (free, total) in json.loads(output).items()}


def probe_memory(names: Sequence[str]) -> dict[str, Memory]:
    """Measure the memory of devices; the CPU's is the host's, cut to the container's limit."""
    return {CPU: host_memory()} if CPU in names else probe_cuda()


def fixed_memory(size: int, names: Sequence[str]) -> dict[str, Memory]:
    """Return the operator's ``size`` for every device instead of measuring."""
    return dict.fromkeys(names, Memory(size, size))


def free_memory(device: str, probe: MemoryProbe) -> dict[str, int]:
    """Measure the bytes that are free on ``device`` and on the host."""
    return {name: probe([name])[name].free for name in {device, CPU}}


def host_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Memory:
    """Measure the host memory that this process may use, cut to its control group's limit (v1 or v2)."""
    lines = (line.split() for line in (proc / "meminfo").read_text().splitlines())
    host = {words[0]: int(words[1]) * 1024 for words in lines}
    free, total = host["MemAvailable:"], host["MemTotal:"]
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        for folder in _control_groups(proc, cgroups):
            with contextlib.suppress(OSError, ValueError):  # the other version's file, or "max" (no limit)
                allowed = int((folder / limit).read_text())
                total = min(total, allowed)
                free = min(free, max(0, allowed - int((folder / used).read_text()) + _reclaimable_cache(folder)))
    return Memory(free, total)


def _control_groups(proc: Path, cgroups: Path) -> list[Path]:
    groups = [line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines()]
    roots = [(cgroups / controllers, path) for _, controllers, path in groups if controllers in ("", "memory")]
    return [folder for root, path in roots for folder in {root, root / path.lstrip("/")}]


def _reclaimable_cache(group: Path) -> int:
    """Read how much page cache the kernel would reclaim before it runs out of memory."""
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


class DeviceTable:
    """Leases devices to jobs: a GPU to one job at a time, the CPU to all jobs of the worker."""

    def __init__(self, names: Sequence[str], work_dir: Path, probe: MemoryProbe = probe_memory) -> None:
        self.names = tuple(names)
        self._work_dir = work_dir
        self._probe = probe

    @contextlib.contextmanager
    def lease(self, needs: Needs) -> Iterator[tuple[str, ...]]:
        """Hold one device per process of the job, each with the memory that a process needs.

        Raises:
            InsufficientDevices: The worker has fewer devices.
            InsufficientMemory: The devices are too small even when empty.
            NoDeviceFree: Other jobs hold the devices or their memory; a later try may succeed.
        """
        with contextlib.ExitStack() as stack:
            if self.names == (CPU,):
                shared = Needs(1, needs.processes * needs.bytes, needs.advice)
                held = list(self._with_room(shared)) * needs.processes
            else:
                room = self._with_room(replace(needs, bytes=needs.bytes and needs.bytes + _CUDA_CONTEXT_BYTES))
                held = list(islice((name for name in room if self._lock(name, stack)), needs.processes))
            if len(held) < needs.processes:
                remedy = "starts when another job ends; a worker with more devices starts it sooner"
                raise NoDeviceFree(WaitingFor(reason="device", needs_bytes=needs.bytes, remedy=remedy))
            yield tuple(held)

    def _with_room(self, needs: Needs) -> Sequence[str]:
        """List the devices that have the memory free now, at least one for each process."""
        if needs.processes > len(self.names):
            raise InsufficientDevices(
                f"the job needs {needs.processes} devices, the worker has {len(self.names)}",
                param="spec.training.processes",
            )
        if not needs.bytes:
            return self.names
        memory = self._probe(self.names)
        largest = sorted(memory[name].total for name in self.names)[-needs.processes]
        if needs.bytes > largest:
            sizes = f"the job needs about {needs.bytes} bytes of a device, the worker has at most {largest}"
            raise InsufficientMemory(f"{sizes}; {needs.advice}", param="spec")
        room = [name for name in self.names if memory[name].free >= needs.bytes]
        if len(room) < needs.processes:
            free = max(memory[name].free for name in self.names)
            remedy = f"starts when other jobs and processes of the machine free memory; {needs.advice}"
            raise NoDeviceFree(WaitingFor(reason="memory", needs_bytes=needs.bytes, free_bytes=free, remedy=remedy))
        return room

    def _lock(self, name: str, stack: contextlib.ExitStack) -> bool:
        self._work_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._work_dir / f"device-{name}", os.O_RDWR | os.O_CREAT, 0o600)
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
