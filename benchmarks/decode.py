"""``python -m benchmarks decode``: cost of a guided step against an unguided one and rivals.

Contenders, all greedy, on one random-weight Llama shape with one adapter:

===========  ==========================================================================================
plain        the lean back end without guidance: the reference
twin         guided, adapter in every layer
late_split   guided, adapter in the upper half of the layers
guarded      twin inside a safe set, which needs the logits of each stream
hf_generate  transformers' ``generate`` without guidance
two_models   ``generate`` guided by a second model in a ``LogitsProcessor``
parm_layer   the same, with PARM's layer, which forms the dense delta in every forward pass
===========  ==========================================================================================
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers import LlamaForCausalLM

from armature.contracts.preferences import ATTRIBUTES
from armature.inference.batch import GuidedBatch
from armature.inference.lean.model import LeanModel
from armature.inference.malloc import keep_freed_memory
from armature.inference.model import GuidedModel
from armature.inference.request import MEASURE_SELDOM, Guide, GuidedRequest
from armature.inference.shared_weights import SharedWeights
from benchmarks.pairing import Contender, Times, ratio, spread, take_turns
from benchmarks.plan import Adapted, Plan
from benchmarks.report import describe_machine
from benchmarks.rivals import generate_steps, merged_arm, parm_arm
from benchmarks.roofline import Limits, measure_limits, product_steps, step_pieces, step_rows
from benchmarks.shapes import adapt, choose_device, choose_dtype, random_model

_PROMPT_TOKENS = 32
_MANY = 64
_DELTA = 5.0
"""Width of the safe set in nats."""
_RATIOS: dict[str, tuple[str, str]] = {
    "twin_over_plain": ("twin", "plain"),
    "late_split_over_plain": ("late_split", "plain"),
    "guarded_over_plain": ("guarded", "plain"),
    "hf_generate_over_plain": ("hf_generate", "plain"),
    "twin_over_hf_generate": ("twin", "hf_generate"),
    "late_split_over_hf_generate": ("late_split", "hf_generate"),
    "speedup_vs_two_models": ("two_models", "twin"),
    "speedup_vs_parm_layer": ("parm_layer", "twin"),
}
"""The report's figures: (over, under), the time per token of one contender over another's."""


def measure(plan: Plan, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        Machine, model, the figures of every batch size with their quartiles over the rounds, and that of the mixture.
    """
    keep_freed_memory()  # as a decoder does
    contest = Contest(plan)
    limits = contest.limits()
    machine = {**describe_machine(contest.device), "gflops": limits.flops / 1e9, "gbytes_per_s": limits.bandwidth / 1e9}
    report: dict[str, Any] = {"machine": machine, "model": contest.describe(), "batch": {}}
    for batch in plan.batches:
        times = take_turns(contest.contenders(batch) | contest.products(batch), plan.rounds)
        figures = {figure: ratio(times, *pair) for figure, pair in _RATIOS.items()}
        progress(f"batch {batch}: {figures}")
        quartiles = {figure: spread(times, *pair) for figure, pair in _RATIOS.items()}
        report["batch"][str(batch)] = {
            **figures,
            "quartiles": quartiles,
            "products": _against({name: statistics.median(times[_of(name)]) for name in step_rows(batch)}, times),
            "limit": _against(contest.floors(batch, limits), times),
        }
    report["mixed64_over_one"] = ratio(take_turns(contest.mixtures(), plan.rounds), "mixed", "one")
    return report


def _of(contender: str) -> str:
    """Name of the contender that runs another one's products alone."""
    return f"products of {contender}"


def _against(floors: Mapping[str, float], times: Times) -> dict[str, float]:
    """Compute the products' shares of a step, and guidance's cost if nothing else took time."""
    shares = {f"{name}_share": floor / statistics.median(times[name]) for name, floor in floors.items()}
    costs = {f"{name}_over_plain": floors[name] / floors["plain"] for name in floors if name != "plain"}
    return {name: round(value, 4) for name, value in {**shares, **costs}.items()}


class Contest:
    """The models, all with the same weights; only guidance by a second model reads a second copy."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.device = choose_device(plan.device)
        self._dtype = choose_dtype(plan.dtype, self.device)
        self._base = random_model(plan.size, self.device, getattr(torch, self._dtype))
        self._shared = SharedWeights(copy.deepcopy(self._base), lean=True)
        self._plain = self._lean(None)
        self._twin = self._lean("all")
        self._late_split = self._lean("upper_half")
        uniform = torch.full((len(ATTRIBUTES),), 1 / len(ATTRIBUTES), device=self.device)
        self._merged = merged_arm(self._adapt(copy.deepcopy(self._base), "all"), uniform)
        self._parm = parm_arm(self._adapt(self._base, "all"), uniform)

    def describe(self) -> dict[str, Any]:
        """Describe the model and the workload."""
        return {
            "size": self._plan.size,
            "parameters": self._base.num_parameters(),
            "dtype": self._dtype,
            "adapter_targets": self._plan.targets,
            "prompt_tokens": _PROMPT_TOKENS,
            "steps": self._plan.steps,
            "rounds": self._plan.rounds,
        }

    def limits(self) -> Limits:
        """Measure this machine's limits in the weights' dtype."""
        return measure_limits(self.device, getattr(torch, self._dtype))

    def floors(self, batch: int, limits: Limits) -> dict[str, float]:
        """Compute the seconds of a step's products at the machine's peak, by contender."""
        return {name: limits.floor(step_pieces(self._base, rows)) for name, rows in step_rows(batch).items()}

    def products(self, batch: int) -> dict[str, Contender]:
        """Make a contender for each step's products, run without anything else."""
        assert isinstance(self._plain.model, LeanModel)
        base, steps = self._plain.model.weights, self._plan.steps
        return {_of(name): partial(product_steps, base, rows, steps) for name, rows in step_rows(batch).items()}

    def engines(self, batch: int) -> dict[str, Contender]:
        """Make the contenders that are this project's own, all on the same prompts."""
        steps = self._plan.steps
        plain, guided = _requests(batch, 0, steps, self._base), _requests(batch, batch, steps, self._base)
        guarded = _requests(batch, batch, steps, self._base, _DELTA)
        return {
            "plain": partial(_lean_steps, self._plain, plain),
            "twin": partial(_lean_steps, self._twin, guided),
            "late_split": partial(_lean_steps, self._late_split, guided),
            "guarded": partial(_lean_steps, self._twin, guarded),
        }

    def contenders(self, batch: int) -> dict[str, Contender]:
        """Make the contenders, all on the same prompts."""
        steps, plain = self._plan.steps, _requests(batch, 0, self._plan.steps, self._base)
        prompts = torch.tensor([request.prompt for request in plain], device=self.device)
        return {
            **self.engines(batch),
            "hf_generate": partial(generate_steps, self._base, prompts, steps),
            "two_models": partial(generate_steps, self._base, prompts, steps, self._merged),
            "parm_layer": partial(generate_steps, self._base, prompts, steps, self._parm),
        }

    def mixtures(self) -> dict[str, Contender]:
        """Make a batch with a preference for each request, and one with a single preference."""
        steps = self._plan.steps
        return {
            "mixed": partial(_lean_steps, self._twin, _requests(_MANY, _MANY, steps, self._base)),
            "one": partial(_lean_steps, self._twin, _requests(_MANY, 1, steps, self._base)),
        }

    def _lean(self, layers: Adapted | None) -> GuidedModel:
        modules = self._shared.modules()
        runnable = self._shared.run(self._adapt(modules, layers) if layers else modules)
        attributes = ATTRIBUTES if layers else ()
        return GuidedModel(runnable, frozenset(), self._base.config.vocab_size, attributes, "reference")

    def _adapt(self, base: Any, layers: Adapted) -> Any:
        return adapt(base, layers, self._plan.targets).requires_grad_(False)


def _lean_steps(model: GuidedModel, requests: Sequence[GuidedRequest]) -> list[float]:
    """Decode one batch and return the seconds of each step."""
    batch = GuidedBatch(model)
    batch.join(batch.begin(requests))
    ticks = [time.perf_counter()]
    for _ in range(requests[0].max_tokens - 1):
        batch.step()
        ticks.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(ticks)]


def _requests(
    count: int, preferences: int, steps: int, model: LlamaForCausalLM, delta: float | None = None
) -> list[GuidedRequest]:
    """Make greedy requests under ``preferences`` preferences (0: unguided), in a safe set if delta."""
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, model.config.vocab_size, (count, _PROMPT_TOKENS), generator=draw).tolist()
    weights = torch.rand(max(preferences, 1), len(ATTRIBUTES), generator=draw).softmax(-1).tolist()
    return [
        GuidedRequest(
            prompt=tuple(prompt),
            max_tokens=steps + 1,
            guide=Guide(tuple(weights[index % preferences]), 1.0, delta) if preferences else None,
            temperature=0.0,
            measured_every=MEASURE_SELDOM,
        )
        for index, prompt in enumerate(prompts)
    ]
