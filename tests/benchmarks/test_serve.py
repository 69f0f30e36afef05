"""``python -m benchmarks serve`` at toy size: real servers, every figure, percentiles and windows."""

from __future__ import annotations

import itertools
import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from armature.inference.batch import GuidedBatch, Sampled
from armature.inference.model import GuidedModel
from armature.inference.request import GuidedRequest
from armature.settings import StoreSettings
from armature_decoder.engine.engine import Engine
from armature_decoder.engine.request import EngineRequest, Event, Sink
from armature_decoder.http.app import create_app
from armature_decoder.settings import DecoderServiceSettings, DecoderSettings
from benchmarks.commands import app
from benchmarks.pairing import percentile
from benchmarks.serve.figures import saturated_throughput
from benchmarks.serve.installation import PROFILE, Installation
from benchmarks.serve.load import Answer, arrivals
from benchmarks.serve.static_server import SCHEDULERS, StaticScheduler, scheduled_by
from tests.support.tiny_models import tiny_llama

PERCENTILES = {"p50", "p95", "p99"}
TOY = "serve --json --size tiny --dtype float32 --slots 2 --requests 4 --swaps 2 --rounds 1"


class CountingBatch(GuidedBatch):
    """A real batch that records the rows of each step."""

    def __init__(self, model: GuidedModel) -> None:
        super().__init__(model)
        self.rows: list[int] = []

    def step(self) -> list[Sampled]:
        self.rows.append(len(self))
        return super().step()


@pytest.mark.process
def test_the_report_has_every_figure() -> None:
    result = CliRunner().invoke(app, TOY.split())
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    for peer in SCHEDULERS:
        assert report[f"continuous_over_{peer}"] > 0
        assert report[f"p95_half_load_over_{peer}"] > 0
        assert report[f"p95_half_static_load_over_{peer}"] > 0
    swap, saturated, loads = report["swap"], report["saturated"], (report["half_load"], report["half_static_load"])
    for load, of in zip(loads, ("continuous", "static"), strict=True):
        assert load["requests_per_second"] == pytest.approx(saturated[of]["requests_per_second"] / 2, abs=1e-3)
    assert (swap["failed_requests"], swap["swaps"]) == (0, 2)
    assert swap["p99_itl_over_steady"] > 0
    assert set(swap["itl_ms"]) == set(swap["steady_itl_ms"]) == PERCENTILES
    for batching in ("continuous", *SCHEDULERS):
        assert saturated[batching]["tokens_per_second"] > 0
        for load, requests in zip(loads, (4, 1), strict=True):
            assert load[batching]["requests"] == requests
            assert all(set(load[batching][waiting]) == PERCENTILES for waiting in ("ttft_ms", "itl_ms", "latency_ms"))
    assert report["model"]["parameters"] == 127_296


@pytest.mark.parametrize("wrong", [("--size", "huge"), ("--slots", "0"), ("--swaps", "0"), ("--requests", "1")])
def test_an_invalid_option_is_refused_by_name(wrong: tuple[str, str]) -> None:
    result = CliRunner().invoke(app, ["serve", *wrong])
    assert result.exit_code == 2
    assert wrong[0] in result.output


@pytest.mark.parametrize("peer", SCHEDULERS)
def test_a_static_batch_is_filled_once_and_then_emptied(peer: str) -> None:
    scheduler = SCHEDULERS[peer](max_slots=2, max_waiting=10)
    requests = [EngineRequest("a", GuidedRequest((1,), 1), sink=lambda event: None) for _ in range(4)]
    for request in requests:
        scheduler.add(request)
    scheduler.admit()
    scheduler.admit()
    assert (scheduler.joining, scheduler.waiting) == (2, 2)
    while (cohort := scheduler.next_cohort()) is not None:
        scheduler.run(cohort)
    scheduler.retire({requests[0].id})
    scheduler.admit()
    assert scheduler.waiting == 2  # one has finished, and its slot stays empty
    scheduler.retire({requests[1].id})
    scheduler.admit()
    assert scheduler.waiting == 0


@pytest.mark.parametrize(("peer", "rows", "first"), [("static", [2, 2, 2, 2], 4), ("early_exit", [2, 1, 1, 1], 1)])
def test_only_static_batching_holds_early_answers_back(peer: str, rows: list[int], first: int) -> None:
    batch = CountingBatch(GuidedModel(tiny_llama(seed=2), frozenset({-1}), 259))
    complete = dict[str, int]()  # steps after which each answer was complete
    scheduler = SCHEDULERS[peer](max_slots=2, max_waiting=10)
    engine = Engine(batch, scheduler, "test")
    done = threading.Event()

    def sink(name: str) -> Sink:
        def receive(event: Event) -> None:
            if isinstance(event, Sampled) and event.finish_reason and name not in complete:
                complete[name] = len(batch.rows)
            if len(complete) == 2:
                done.set()

        return receive

    engine.submit([EngineRequest("a", GuidedRequest((1,), n), sink(name)) for name, n in (("short", 2), ("long", 5))])
    assert done.wait(10)
    engine.stop()
    assert batch.rows == rows
    assert complete == {"short": first, "long": 4}


def test_a_decoder_runs_on_a_peer_s_scheduler(tmp_path: Path) -> None:
    made: list[StaticScheduler] = []

    class Recorded(StaticScheduler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    store = StoreSettings(path=tmp_path / "store")
    installation = Installation(tmp_path / "store")
    installation.publish_pair(tmp_path / "pair", "tiny", torch.float32)
    installation.point()
    decoder = DecoderSettings(cache_dir=tmp_path / "cache", load_wait=60)
    with (
        scheduled_by(Recorded),
        TestClient(create_app(DecoderServiceSettings(store=store, decoder=decoder))) as client,
    ):
        headers = {"Authorization": f"Bearer {installation.token}"}
        body = {"model": PROFILE, "prompt": "w1", "max_tokens": 2}
        answer = client.post("/v1/completions", json=body, headers=headers)
    assert answer.is_success, answer.text
    assert len(made) == 1


def test_throughput_counts_tokens_while_requests_wait() -> None:
    answers = [Answer(0.0, tokens=[1.0, 2.0, 3.0, 9.0]), Answer(0.0, tokens=[5.0, 6.0])]
    assert saturated_throughput(answers) == 3 / 4  # 2.0, 3.0 and 5.0, in the 4 seconds from 1.0 to 5.0
    together = [Answer(0.0, tokens=[end + late / 100] * 8) for end in (2.0, 4.0, 6.0) for late in range(4)]
    assert saturated_throughput(together) == 2 * 4 * 8 / 4.03  # the batches that ended after the first one
    assert answers[0].gaps() == [1.0, 1.0, 6.0]
    assert answers[0].gaps(2.0, 9.0) == [1.0, 1.0]
    assert percentile([1.0], 99) == 1.0
    assert percentile([0.0, 1.0, 2.0, 3.0, 4.0], 50) == 2.0


def test_a_seed_gives_the_same_requests_at_any_rate(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "store")
    installation.publish_pair(tmp_path / "pair", "tiny", torch.float32)
    slow, fast, at_once = (
        list(itertools.islice(arrivals(installation, rate, 7), 400)) for rate in (10.0, 20.0, math.inf)
    )
    assert [arrival.body for arrival in slow] == [arrival.body for arrival in fast] == [a.body for a in at_once]
    assert all(a.at == pytest.approx(2 * b.at) for a, b in zip(slow, fast, strict=True))
    assert {arrival.at for arrival in at_once} == {0.0}
    assert slow[-1].at == pytest.approx(40, rel=0.2)  # Poisson: 400 arrivals at 10 a second
    lengths = [int(str(arrival.body["max_tokens"])) for arrival in slow]
    assert (min(lengths), max(lengths)) == (4, 128)
    assert 24 < sum(lengths) / len(lengths) < 38
