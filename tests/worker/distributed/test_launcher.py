"""A job in several processes: the adapter of a single process, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from armature.contracts.artifacts import AdapterMetadata
from armature.errors import InvalidDataset, RankLost
from armature_worker.context.ports import RecipeResult, WorkerStopping
from tests.support.processes import wait_until
from tests.support.rank_jobs import adapter, run_group, training_spec
from tests.support.recipe_context import as_input
from tests.support.recipe_world import World, harm_spec, tiny_world

SAFE = {"harm_vector": "harm", "harm_scale": 1.0}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a harm vector, so that sharded loading subtracts one."""
    world = tiny_world(tmp_path_factory.mktemp("world"))
    world.artifacts["harm"] = as_input(world.run(harm_spec()).outputs[0])
    return world


def ranks_of_this_test() -> list[int]:
    """List the ranks that this process has started and that still run."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if b"armature_worker.distributed" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.fixture(scope="module")
def together(world: World) -> dict[str, RecipeResult]:
    """Results of two processes, by sharding."""
    return {sharding: run_group(world, training_spec(2, sharding=sharding) | SAFE) for sharding in ("none", "fsdp")}


@pytest.mark.process
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_train_the_adapter_of_one(world: World, together: dict[str, RecipeResult], sharding: str) -> None:
    """Two micro-batches per step, with conflicts resolved once."""
    alone = world.run(training_spec(1) | SAFE)
    expected, found = adapter(alone), adapter(together[sharding])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-4)
    assert max(float(tensor.abs().max()) for tensor in found.values()) > 1e-2
    one, two = (result.outputs[0].metadata for result in (alone, together[sharding]))
    assert isinstance(one, AdapterMetadata)
    assert isinstance(two, AdapterMetadata)
    assert two.canary.base_log_probs == pytest.approx(one.canary.base_log_probs, abs=1e-4)
    assert two.canary.log_probs == pytest.approx(one.canary.log_probs, abs=1e-3)
    assert ranks_of_this_test() == []


@pytest.mark.process
def test_an_attempt_resumes_after_a_killed_rank(
    world: World, together: dict[str, RecipeResult], tmp_path: Path
) -> None:
    spec = training_spec(2) | SAFE

    def kill_the_other(phase: str, step: int) -> None:
        if phase == "train" and step == 3:
            victim = max(ranks_of_this_test())
            os.kill(victim, signal.SIGKILL)

    ports = {"checkpoints": tmp_path / "checkpoints"}
    with pytest.raises(RankLost, match="SIGKILL"):
        run_group(world, spec, on_progress=kill_the_other, **ports)
    assert ranks_of_this_test() == []
    resumed = adapter(run_group(world, spec, **ports))
    for name, tensor in adapter(together["none"]).items():
        assert torch.equal(resumed[name], tensor), name


@pytest.mark.process
def test_a_worker_that_stops_gets_a_checkpoint_first(world: World, tmp_path: Path) -> None:
    def stop(phase: str, step: int) -> None:
        if phase == "train":
            raise WorkerStopping

    with pytest.raises(WorkerStopping):
        run_group(world, training_spec(2), on_progress=stop, checkpoints=tmp_path / "checkpoints")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert ranks_of_this_test() == []


@pytest.mark.process
def test_the_recipes_error_is_raised_unchanged(world: World) -> None:
    spec = training_spec(2) | {"attributes": ["empathy", "humour"]}
    with pytest.raises(InvalidDataset, match="humour") as caught:
        run_group(world, spec)
    assert caught.value.param == "spec.attributes.1"


@pytest.mark.process
def test_the_processes_end_with_the_worker(world: World, tmp_path: Path) -> None:
    """A killed worker has no time to end its ranks; each watches its parent."""
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from pathlib import Path
from tests.support.rank_jobs import run_group, training_spec
from tests.support.recipe_world import World, tiny_world
from tests.worker.distributed.test_launcher import ranks_of_this_test
def report(phase, step):
    if phase == "train":
        print(*ranks_of_this_test(), flush=True)
run_group(tiny_world(Path({str(tmp_path)!r})), training_spec(2, steps=100000), on_progress=report)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        ranks = [int(pid) for pid in worker.stdout.readline().split()]
        assert len(ranks) == 2
        worker.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks), what="the ranks' end")
