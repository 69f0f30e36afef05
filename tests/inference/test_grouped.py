"""A smaller ARM guides a bigger base: every row equals a forward pass of its own model, whatever shares the batch."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from armature.algorithms.guided_decoding import FORMS
from armature.contracts.artifacts import LossForm
from armature.errors import InvalidRequest
from armature.inference.batch import sample_sequences
from armature.inference.grouped import GroupedRunner
from armature.inference.lean.model import LeanModel
from armature.inference.logits import ReadPlan, StreamLogits
from armature.inference.model import GuidedModel, start_runner
from armature.inference.request import Guide, GuidedRequest, Instruction
from armature.inference.runner import ModelRunner, Prefill, staying
from armature.inference.stream import Role
from armature.modeling.adapters.peft_pblora import preferences
from tests.support.adapters import add_random_adapter
from tests.support.failing_ops import fail_at_every_operation
from tests.support.generate import generate_guided
from tests.support.tiny_models import tiny_llama

ATTRIBUTES = ("empathy", "truthfulness")
NEVER = frozenset({-1})
V = 259
TOLERANCE = {"atol": 1e-5, "rtol": 0.0}
WEIGHTS = [[1.0, 0.0], [0.25, 0.75], None]
RUN: dict[str, Callable[[PreTrainedModel], Any]] = {"hf": lambda model: model, "lean": LeanModel}


def base() -> PreTrainedModel:
    return tiny_llama(seed=5, layers=4)


def arm() -> PeftModel:
    return add_random_adapter(tiny_llama(seed=8, layers=1), list(ATTRIBUTES))


def guided_model(form: LossForm = "reference", run_base: str = "hf", run_arm: str = "hf") -> GuidedModel:
    return GuidedModel(RUN[run_base](base()), NEVER, V, ATTRIBUTES, form, RUN[run_arm](arm()))


class Requests:
    """A runner of two models seen by request, as a batch arranges its streams."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.rows: list[dict[Role, int]] = []

    def __len__(self) -> int:
        return len(self.rows)

    def begin(self, requests: Sequence[GuidedRequest]) -> tuple[Prefill, list[list[Role]]]:
        streams = [one.streams() for one in requests]
        flat = [stream for own in streams for stream in own.values()]
        return self.runner.prefill(flat), [list(own) for own in streams]

    def join(self, begun: tuple[Prefill, list[list[Role]]], chunk: int = 1000) -> StreamLogits:
        prefill, roles = begun
        while prefill.remaining:
            self.runner.extend(prefill, chunk)
        self.runner.join(prefill)
        self._place([*map(list, self.rows), *roles])
        assert prefill.logits is not None
        new = self.rows[-len(roles) :]
        first = min(row for own in new for row in own.values())
        return self._gather(prefill.logits, [{role: row - first for role, row in own.items()} for own in new])

    def step(self, tokens: torch.Tensor) -> StreamLogits:
        counts = torch.tensor([len(own) for own in self.rows])
        return self._gather(self.runner.decode(tokens.repeat_interleave(counts)), self.rows)

    def keep(self, slots: Sequence[int]) -> None:
        leaving = staying(len(self), slots)
        self.runner.evict([row for slot in leaving for row in self.rows[slot].values()])
        self._place([list(self.rows[slot]) for slot in slots])

    def _place(self, roles: Sequence[Sequence[Role]]) -> None:
        rows = itertools.count()
        self.rows = [{role: next(rows) for role in own} for own in roles]

    def _gather(self, logits: torch.Tensor, rows: list[dict[Role, int]]) -> StreamLogits:
        plan = ReadPlan.of(rows, [None] * len(rows), logits.device)
        return plan.gather(logits[[read.row for read in plan.reads]])


def asked(ids: Sequence[int], weights: list[float] | None, arm_ids: Sequence[int] = ()) -> GuidedRequest:
    guide = None if weights is None else Guide(tuple(weights), 1.0)
    return GuidedRequest(tuple(ids), 1, guide=guide, arm_prompt=tuple(arm_ids or ids))


@pytest.fixture(params=[(one, other) for one in RUN for other in RUN], ids="-".join)
def rows(request: pytest.FixtureRequest) -> Requests:
    return Requests(start_runner(guided_model("reference", *request.param)))


@torch.inference_mode()
def alone(ids: list[int], weight: list[float] | None, arm_ids: list[int] | None = None) -> StreamLogits:
    """What each model says by itself."""
    safe = base()(torch.tensor([ids])).logits[0, -1]
    if weight is None:
        return StreamLogits(safe, safe, safe)
    model, logits = arm(), []
    for gate in (True, False):
        with preferences(model, torch.tensor([weight]), gate=torch.tensor([gate])):
            logits.append(model(torch.tensor([arm_ids or ids])).logits[0, -1])
    return StreamLogits(safe, *logits)


def assert_alone(logits: StreamLogits, slot: int, wanted: StreamLogits) -> None:
    reference = logits.safe if logits.reference is None else logits.reference
    for found, expected in zip((logits.safe, logits.arm, reference), wanted[:3], strict=True):
        assert expected is not None
        torch.testing.assert_close(found[slot], expected, **TOLERANCE)


def test_all_streams_equal_the_two_models_alone(rows: Requests) -> None:
    sequences = [[5, 6, 7, 8], [9], [10, 11]]
    logits = rows.join(rows.begin([asked(*pair) for pair in zip(sequences, WEIGHTS, strict=True)]), chunk=3)
    for _ in range(3):
        for slot, (ids, weight) in enumerate(zip(sequences, WEIGHTS, strict=True)):
            assert_alone(logits, slot, alone(ids, weight))
        tokens = logits.arm.argmax(-1)
        sequences = [[*ids, token] for ids, token in zip(sequences, tokens.tolist(), strict=True)]
        logits = rows.step(tokens)
    assert logits.reference is not None
    assert not torch.allclose(logits.safe[0], logits.reference[0], atol=1e-2)


def test_each_model_reads_a_prompt_of_its_own(rows: Requests) -> None:
    logits = rows.join(rows.begin([asked([5, 6], WEIGHTS[1], [40, 41, 42, 5, 6])]), chunk=2)
    assert_alone(logits, 0, alone([5, 6], WEIGHTS[1], [40, 41, 42, 5, 6]))
    assert_alone(rows.step(torch.tensor([7])), 0, alone([5, 6, 7], WEIGHTS[1], [40, 41, 42, 5, 6, 7]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_requests_join_and_leave_without_touching_each_other(rows: Requests, seed: int) -> None:
    draw = random.Random(seed)
    live: list[tuple[list[int], list[float] | None]] = []
    for _ in range(20):
        if not live or draw.random() < 0.5:
            count = draw.randint(1, 3)
            new = [([draw.randrange(3, V)] * draw.randint(1, 6), draw.choice(WEIGHTS)) for _ in range(count)]
            rows.join(rows.begin([asked(*one) for one in new]))
            live += new
        elif draw.random() < 0.6:
            kept = draw.sample(range(len(live)), draw.randint(0, len(live)))
            rows.keep(sorted(kept))
            live = [live[slot] for slot in sorted(kept)]
        if live:
            tokens = [draw.randrange(3, V) for _ in live]
            logits = rows.step(torch.tensor(tokens))
            live = [([*ids, token], weight) for (ids, weight), token in zip(live, tokens, strict=True)]
            slot = draw.randrange(len(live))
            assert_alone(logits, slot, alone(*live[slot]))
        assert len(rows) == len(live)


def test_a_join_that_fails_at_any_operation_leaves_both_models_as_they_were(rows: Requests) -> None:
    ids = [5, 6]
    rows.join(rows.begin([asked(ids, WEIGHTS[0])]))
    (prefill, _), runner = rows.begin([asked([9, 9, 9], WEIGHTS[1])]), rows.runner
    assert isinstance(runner, GroupedRunner)
    while prefill.remaining:
        runner.extend(prefill, 8)

    def check() -> None:
        assert [len(one) for one in runner._runners.values()] == [1, 2]
        assert len(rows) == 1
        ids.append(7)
        assert_alone(rows.step(torch.tensor([7])), 0, alone(ids, WEIGHTS[0]))

    assert fail_at_every_operation(lambda: runner.join(prefill), check) > 5


def test_a_request_says_whether_the_arm_reads_a_prompt_of_its_own() -> None:
    one = GuidedRequest((5, 6), 1, guide=Guide((0.5, 0.5), 1.5))
    other = dataclasses.replace(one, arm_prompt=(7, 5, 6))
    assert (one.prompt_tokens, other.prompt_tokens) == (2 * 2, 2 + 2 * 3)
    on_the_base = GuidedModel(arm(), NEVER, V, ATTRIBUTES, "reference")
    for model, request in ((guided_model(), one), (on_the_base, other)):
        with pytest.raises(ValueError, match="arm_prompt"):
            sample_sequences(model, [request])
        sample_sequences(model, [dataclasses.replace(request, guide=None)])


def test_models_of_different_dtypes_share_a_batch() -> None:
    model = dataclasses.replace(guided_model(), model=base().bfloat16())
    requests = [GuidedRequest((5, 6), 4, guide=Guide((0.5, 0.5), 1.5), arm_prompt=(5, 6)), GuidedRequest((7, 8, 9), 4)]
    assert generate_guided(model, requests) == [generate_guided(model, [one])[0] for one in requests]


def test_a_preference_that_the_arm_does_not_take_is_refused(rows: Requests) -> None:
    with pytest.raises(InvalidRequest):
        rows.begin([asked([5], [1.0])])
    assert len(rows) == 0


@pytest.mark.parametrize("form", sorted(FORMS))
def test_the_product_rule_compares_the_arm_with_its_own_backbone(form: LossForm) -> None:
    model = guided_model(form)
    one = GuidedRequest((5, 6, 7), 1, guide=Guide((0.5, 0.5), 1.5), arm_prompt=(5, 6, 7), top_logprobs=V)
    token = sample_sequences(model, [one])[0][0]
    safe, log_arm, reference = (one.log_softmax(-1) for one in alone([5, 6, 7], [0.5, 0.5]) if one is not None)
    q = log_arm - reference if form == "reference" else log_arm
    wanted = (safe + 1.5 * q).log_softmax(-1)
    for id, logprob in token.top:
        assert logprob == pytest.approx(wanted[id].item(), abs=1e-4)


def request(seed: int) -> GuidedRequest:
    draw = torch.Generator().manual_seed(seed)
    prompt = tuple(torch.randint(3, V, (1 + seed % 6,), generator=draw).tolist())
    one = GuidedRequest(prompt, 3 + seed % 5, seed, arm_prompt=(7, *prompt) if seed % 2 else prompt)
    if seed % 3:
        one = dataclasses.replace(one, guide=Guide((0.3, 0.7), 2.0, [None, 1.0][seed % 2]))
    if seed % 4 == 1:
        one = dataclasses.replace(one, instruction=Instruction(3.0), instructed_prompt=(20, 21, 22, *prompt))
    return one


@pytest.mark.slow
@pytest.mark.parametrize("run", RUN)
def test_batching_changes_no_token(run: str) -> None:
    model = guided_model("reference", run, run)
    requests = [request(seed) for seed in range(30)]
    together = generate_guided(model, requests, max_slots=7)
    assert together == [generate_guided(model, [one])[0] for one in requests]


def test_weight_0_is_the_base_bit_for_bit() -> None:
    plain = GuidedModel(base(), NEVER, V)
    for seed in range(5):
        one = dataclasses.replace(request(seed), guide=None, instruction=None, top_logprobs=4)
        off = dataclasses.replace(one, guide=Guide((1.0, 0.0), 0.0, 0.1))
        assert sample_sequences(guided_model(), [off]) == sample_sequences(plain, [one])


def test_the_memory_is_that_of_both() -> None:
    for run in RUN:
        both = guided_model("reference", run, run).kv_memory
        one, other = GuidedModel(RUN[run](base()), NEVER, V).kv_memory, GuidedModel(RUN[run](arm()), NEVER, V).kv_memory
        assert both.needed(4, 8, 64) == one.needed(4, 4, 64) + other.needed(4, 8, 64)
