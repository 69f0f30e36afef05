"""What the worker asks of GPUs, and does with them: memory before a job, freed after it, several for one job."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from armature.errors import InsufficientMemory, OutOfMemory
from armature_worker.host.devices import DeviceTable, Needs, list_devices, probe_cuda
from armature_worker.host.failures import explain
from tests.support.rank_jobs import adapter, run_group, training_spec
from tests.support.recipe_world import tiny_world

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_devices_tell_their_memory() -> None:
    found = probe_cuda()
    assert list_devices("auto") == tuple(found)
    assert len(found) == torch.cuda.device_count()
    for name, memory in found.items():
        assert 0 < memory.free <= memory.total == torch.cuda.mem_get_info(name)[1]


def test_what_no_device_holds_is_refused(tmp_path: Path) -> None:
    devices = DeviceTable(list_devices("auto"), tmp_path)
    with devices.lease(Needs(bytes=1 << 20)) as held:
        assert held == ("cuda:0",)
    with pytest.raises(InsufficientMemory):
        devices.lease(Needs(bytes=1 << 50)).__enter__()


def test_out_of_memory_reports_the_devices_sizes() -> None:
    _, total = torch.cuda.mem_get_info(0)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(2 * total, dtype=torch.uint8, device="cuda:0")
    told = explain(caught.value)
    assert isinstance(told, OutOfMemory)
    assert str(total) in told.message


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_gpus_train_the_adapter_of_one(tmp_path: Path, sharding: str) -> None:
    world = tiny_world(tmp_path)
    alone = adapter(world.run(training_spec(1), device="cuda:0"))
    together = adapter(run_group(world, training_spec(2, sharding=sharding), device="cuda"))
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, atol=1e-3, rtol=1e-2)
