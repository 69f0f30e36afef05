"""``python -m benchmarks train``: cost of a step with five objectives against one and rivals.

Contenders, all on one batch, one random-weight Llama and one adapter; each ends with the gradients of the adapter:

======================  ===============================================================================================
one_objective           this code with one attribute: the reference
five_objectives         this code: all attributes' gradients from one backward pass, then their conflicts resolved
k_backwards             the same by autograd, a backward pass for each attribute, on batches of the same layout
materialised            PARM's layer: the dense delta formed in every forward pass, in float32 as its adapter is; a row
                        for each answer and logits for all of it, as its script has them; one preference for the batch,
                        one weighted sum of losses, no attribute's own gradient
materialised_autocast   the same under autocast, as PARM's training script runs it (a bfloat16 model only)
======================  ===============================================================================================

The reward is the plain sum of log-probabilities: the reference form would add the same forward pass to each contender.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from armature.algorithms.conditioned_lora import AdapterWeights
from armature.algorithms.objective_gradients import ObjectiveGradients
from armature.algorithms.preference_loss import (
    attribute_losses,
    pair_margins,
    sample_preferences,
    sequence_log_probs,
)
from armature.contracts.preferences import ATTRIBUTES
from armature.contracts.specs.arm import ArmTrainSpec, ConflictResolution
from armature.modeling.adapters.peft_pblora import adapter_layers
from armature_worker.data.pair_batches import PairLayout
from armature_worker.data.preference_pairs import LabelledPair
from armature_worker.data.tokenized import Example, collate
from armature_worker.training.gradient_conflicts import resolve_gradients
from armature_worker.training.reward_margins import compute_margins
from benchmarks.pairing import Contender, ratio, spread, take_turns
from benchmarks.plan import Targets, TrainPlan
from benchmarks.report import describe_machine
from benchmarks.rivals import parm_arm
from benchmarks.shapes import adapt, choose_device, choose_dtype, random_model

_TARGETS: Targets = "attention_and_mlp"
_BETA = 0.1
_SPEC = ArmTrainSpec(base_model="", pairs="", conflict=ConflictResolution(method="pcgrad", scope="all"))
_RATIOS: dict[str, tuple[str, str]] = {
    "step_ratio": ("five_objectives", "one_objective"),
    "vs_k_backwards": ("k_backwards", "five_objectives"),
    "vs_materialised": ("materialised", "five_objectives"),
    "vs_materialised_autocast": ("materialised_autocast", "five_objectives"),
}
"""The report's figures: (over, under), the time of one contender over another's."""


def measure(plan: TrainPlan, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        Machine, model, seconds, and ``objective_gradients``: the ratios with their quartiles over the rounds, and the
        largest relative difference of the gradients to those of K backward passes, in float32.
    """
    device = choose_device(plan.device)
    dtype = choose_dtype(plan.dtype, device)
    error = _Step(plan, device, torch.float32).largest_error()
    progress(f"max_rel_err {error:.1e}")
    step = _Step(plan, device, getattr(torch, dtype))
    times = take_turns(step.contenders(), plan.rounds)
    ratios = {figure: pair for figure, pair in _RATIOS.items() if set(pair) <= set(times)}
    return {
        "machine": describe_machine(device),
        "model": {**step.describe(), "dtype": dtype, "rounds": plan.rounds},
        "seconds": {name: sorted(turns)[len(turns) // 2] for name, turns in times.items()},
        "objective_gradients": {
            **{figure: ratio(times, *pair) for figure, pair in ratios.items()},
            "max_rel_err": error,
            "quartiles": {figure: spread(times, *pair) for figure, pair in ratios.items()},
        },
    }


class _Step:
    """The model, the adapter and the batch of every contender's step."""

    def __init__(self, plan: TrainPlan, device: str, dtype: torch.dtype) -> None:
        self._plan, self._device, self._dtype = plan, device, dtype
        base = random_model(plan.size, device, dtype)
        self._parameters = base.num_parameters()
        self._arm = adapt(base, plan.layers, _TARGETS)
        self._weights = {name: layer.weights("default") for name, layer in adapter_layers(self._arm).items()}
        draw = torch.Generator().manual_seed(0)
        pairs = [_draw_pair(plan, base.config.vocab_size, draw) for _ in range(plan.pairs)]
        self._batch = PairLayout.of(base, pairs, device).collate(pairs)
        self._rows = collate([example for pair in pairs for example in pair.examples], device)
        self._signs = (torch.randint(2, (plan.pairs, len(ATTRIBUTES)), generator=draw) * 2.0 - 1).to(device)
        self._preferences = sample_preferences(plan.pairs, len(ATTRIBUTES), 0.0, 0.0, 0.5, draw).to(device)
        self._betas = torch.full((len(ATTRIBUTES),), _BETA, device=device)
        rival = adapt(base, plan.layers, _TARGETS)
        self._rival_tensors = [
            tensor for layer in adapter_layers(rival).values() for tensor in layer.weights("default")
        ]
        self._rival = parm_arm(rival, self._preferences[0])

    def describe(self) -> dict[str, Any]:
        """Describe the model, the adapter and the batch."""
        return {
            "size": self._plan.size,
            "parameters": self._parameters,
            "adapter_layers": self._plan.layers,
            "adapter_targets": _TARGETS,
            "adapter_parameters": sum(tensor.numel() for layer in self._weights.values() for tensor in layer),
            "objectives": len(ATTRIBUTES),
            "pairs": self._plan.pairs,
            "tokens_per_prompt": self._plan.prompt,
            "tokens_per_answer": self._plan.answer,
            "padded_tokens": {
                "a_row_per_answer": self._rows.ids.numel(),
                "ours": self._batch.inputs["input_ids"].numel(),
            },
        }

    def contenders(self) -> dict[str, Contender]:
        """Make the contenders, timed."""
        steps: dict[str, Callable[[], object]] = {
            "one_objective": lambda: self._one_backward(1),
            "five_objectives": lambda: _resolve(self._one_backward()),
            "k_backwards": lambda: _resolve(self._k_backwards()),
            "materialised": self._materialised,
        }
        if self._dtype == torch.bfloat16:
            steps["materialised_autocast"] = self._materialised_autocast
        return {name: partial(_timed, step, self._device) for name, step in steps.items()}

    def largest_error(self) -> float:
        """Largest ``|one backward - K backwards| / |K backwards|`` over tensors and objectives."""
        measured, expected = self._one_backward(), self._k_backwards()
        return max(
            float((one - reference).flatten(1).norm(dim=1).div(reference.flatten(1).norm(dim=1)).max())
            for name, layer in expected.items()
            for one, reference in zip(measured[name], layer, strict=True)
        )

    def _one_backward(self, objectives: int = len(ATTRIBUTES)) -> dict[str, AdapterWeights]:
        recorder = ObjectiveGradients()
        margins = self._margins(recorder)
        recorder.backward(margins, self._losses(margins)[:, :objectives].mean(0))
        return recorder.layers

    def _k_backwards(self) -> dict[str, AdapterWeights]:
        losses = self._losses(self._margins()).mean(0)
        passes = [torch.autograd.grad(loss, self._tensors(), retain_graph=True) for loss in losses]
        stacked = iter([torch.stack(gradients) for gradients in zip(*passes, strict=True)])
        return {name: AdapterWeights(*(next(stacked) for _ in layer)) for name, layer in self._weights.items()}

    def _materialised(self) -> tuple[Tensor, ...]:
        rows = self._rows
        logits = self._rival(input_ids=rows.ids, attention_mask=rows.attention_mask, use_cache=False).logits
        margins = pair_margins(sequence_log_probs(logits, rows.ids, rows.completion_mask))
        return torch.autograd.grad(self._losses(margins).mean(0).sum(), self._rival_tensors)

    def _materialised_autocast(self) -> tuple[Tensor, ...]:
        with torch.autocast(self._device, torch.bfloat16):
            return self._materialised()

    def _tensors(self) -> list[Tensor]:
        return [tensor for layer in self._weights.values() for tensor in layer]

    def _margins(self, recorder: ObjectiveGradients | None = None) -> Tensor:
        training = None if recorder is None else (recorder, torch.arange(self._plan.pairs))
        return compute_margins(self._arm, "sum", self._batch, self._preferences, None, training)

    def _losses(self, margins: Tensor) -> Tensor:
        return attribute_losses(margins, self._signs, self._preferences, self._betas)


def _draw_pair(plan: TrainPlan, vocab_size: int, draw: torch.Generator) -> LabelledPair:
    """Draw a pair of random tokens; lengths are half to one and a half times the planned ones."""

    def tokens(planned: int) -> list[int]:
        length = int(torch.randint((planned + 1) // 2, 3 * planned // 2 + 1, (), generator=draw))
        return torch.randint(3, vocab_size, (length,), generator=draw).tolist()

    prompt = tokens(plan.prompt)
    return LabelledPair([Example([*prompt, *tokens(plan.answer)], len(prompt)) for _ in range(2)], [])


def _resolve(gradients: dict[str, AdapterWeights]) -> object:
    """Apply PCGrad to all parameters, the most expensive conflict method."""
    return resolve_gradients(gradients, _SPEC, torch.Generator().manual_seed(0))


def _timed(step: Callable[[], object], device: str) -> list[float]:
    started = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return [time.perf_counter() - started]
