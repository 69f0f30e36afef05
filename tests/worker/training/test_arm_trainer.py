"""The training loop's arithmetic: a step is the same however it is split into micro-batches or over ranks."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import pytest
import torch
from torch import Tensor

from armature.contracts.datasets import PreferenceRow
from armature.contracts.specs import parse_spec
from armature.contracts.specs.arm import ArmTrainSpec, ConflictMethod
from armature.errors import InvalidRequest
from armature.modeling.adapters.arm import create_arm
from armature_worker.context.process_group import ProcessGroup
from armature_worker.data.preference_pairs import ArmData, LabelledPair
from armature_worker.data.tokenized import tokenise
from armature_worker.training.arm_trainer import ArmTrainer
from tests.support.recipe_context import LocalContext
from tests.support.recipe_world import DATA, arm_spec
from tests.support.tiny_models import byte_tokenizer, tiny_llama

T = TypeVar("T")


def labelled_pairs() -> list[LabelledPair]:
    rows, tokenizer = [PreferenceRow.model_validate(row) for row in DATA["pairs"]], byte_tokenizer()
    examples = [tokenise(tokenizer, row.prompt, row.responses, 64) for row in rows]
    signs = [[1.0, -1.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]]
    return [LabelledPair(e, s) for e, s in zip(examples, signs, strict=True) if e is not None]


PAIRS = labelled_pairs()


@dataclass
class Run:
    """A trainer and its results: the adapter, and the metrics of every step."""

    trainer: ArmTrainer
    adapter: dict[str, torch.nn.Parameter]
    metrics: list[dict[str, float]]


def prepare(folder: Path, group: ProcessGroup | None = None, **changes: Any) -> Run:
    training = {"steps": 3, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 1}
    changes["training"] = training | changes.get("training", {})
    spec = parse_spec(arm_spec(**changes))
    assert isinstance(spec, ArmTrainSpec)
    torch.manual_seed(5)
    model = create_arm(tiny_llama(), spec.attributes, spec.adapter, spec.loss.form)
    folder.mkdir()
    context = LocalContext(folder)
    adapter = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return Run(ArmTrainer(model, ArmData(PAIRS, []), spec, context, group), adapter, context.metrics)


def train(folder: Path, **changes: Any) -> Run:
    run = prepare(folder, **changes)
    run.trainer.fit()
    return run


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare by tensor: Adam amplifies entries whose gradient is mere rounding noise."""
    for name in expected:
        assert (found[name] - expected[name]).norm() <= 1e-3 * expected[name].norm(), name


def assert_same_metrics(found: Sequence[Mapping[str, float]], expected: Sequence[Mapping[str, float]]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.trap(13)
@pytest.mark.parametrize(
    ("method", "form"),
    [*((method, "reference") for method in get_args(ConflictMethod)), ("pcgrad", "sum"), ("pcgrad", "mean")],
)
def test_a_step_does_not_depend_on_its_micro_batches(method: str, form: str, tmp_path: Path) -> None:
    asked = {
        "conflict": {"method": method, "scope": "all"},
        "loss": {"form": form},
        "adapter": {"dropout": 0.2, "layers": "all"},
    }
    whole = train(tmp_path / "whole", **asked)
    assert len(whole.metrics) == 3
    for size in (1, 3):
        cut = train(tmp_path / f"cut{size}", training={"micro_batch_size": size}, **asked)
        assert_same(cut.adapter, whole.adapter)
        assert_same_metrics(cut.metrics, whole.metrics)


class Team:
    """All-reduce among ranks that run as threads of one process."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.given: dict[int, Sequence[Tensor]] = {}


class ThreadRank:
    """The process group of one such rank."""

    def __init__(self, team: Team, rank: int) -> None:
        self.team, self.rank, self.size = team, rank, team.size

    def shard(self, rows: Sequence[T]) -> Sequence[T]:
        return rows[self.rank :: self.size]

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        self.team.given[self.rank] = [tensor.clone() for tensor in tensors]
        self.team.barrier.wait()
        for index, tensor in enumerate(tensors):
            tensor.copy_(torch.stack([self.team.given[rank][index] for rank in range(self.size)]).sum(0))
        self.team.barrier.wait()


def test_ranks_take_the_step_of_one_process(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"adapter": {"dropout": 0.2}, "training": {"micro_batch_size": 3}}
    alone = train(tmp_path / "alone", **asked)
    team = Team(2)
    first, second = (prepare(tmp_path / f"rank{rank}", ThreadRank(team, rank), **asked) for rank in range(2))
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(run.trainer.fit) for run in (first, second)]:
            done.result()
    assert_same(first.adapter, alone.adapter)
    assert all(torch.equal(first.adapter[name], second.adapter[name]) for name in alone.adapter)
    assert_same_metrics(first.metrics, alone.metrics)
    assert second.metrics == []


def test_an_uneven_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="9 pairs do not divide evenly over 2") as caught:
        prepare(tmp_path / "odd", ThreadRank(Team(2), 0), training={"batch_size": 9})
    assert caught.value.param == "spec.training.batch_size"
