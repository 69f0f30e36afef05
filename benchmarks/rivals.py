"""Published ways to guide with a second model, as rivals; each decodes in transformers' ``generate``."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from armature.algorithms.conditioned_lora import AdapterWeights, ConditionedShape, delta_weight, split_parts
from armature.modeling.adapters.peft_pblora import adapter_layers

Replace = Callable[[nn.Linear, AdapterWeights, Tensor, ConditionedShape], nn.Linear]


def generate_steps(
    model: PreTrainedModel, prompts: Tensor, steps: int, arm: PreTrainedModel | None = None
) -> list[float]:
    """Run greedy ``generate``, guided by ``arm`` if given; return the seconds between tokens."""
    clock = _Clock()
    processors = LogitsProcessorList([_ArmProcessor(arm)] if arm else [])
    with torch.inference_mode():
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=steps + 1,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
    return [after - before for before, after in itertools.pairwise(clock.ticks)]


class _Clock(StoppingCriteria):  # type: ignore[misc]
    """A stopping criterion that never stops, and records when each token is there."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        self.ticks.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _ArmProcessor(LogitsProcessor):  # type: ignore[misc]
    """``log pi + log pi_arm`` by a second model with a cache of its own (GenARM, PARM)."""

    def __init__(self, arm: PreTrainedModel) -> None:
        self._arm = arm
        self._cache = DynamicCache(config=arm.config)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        unseen = input_ids[:, self._cache.get_seq_length() :]
        logits = self._arm(input_ids=unseen, past_key_values=self._cache, logits_to_keep=1).logits[:, -1]
        guided: Tensor = scores.float().log_softmax(-1) + logits.float().log_softmax(-1)
        return guided


def merged_arm(model: PeftModel, preference: Tensor) -> PreTrainedModel:
    """Merge the ARM at one preference into a model of its own: the least that a second model costs."""

    def merge(base: nn.Linear, weights: AdapterWeights, p: Tensor, shape: ConditionedShape) -> nn.Linear:
        base.weight.data += delta_weight(weights, p, shape).to(base.weight.dtype)
        return base

    return _replace_adapters(model, preference, merge)


def parm_arm(model: PeftModel, preference: Tensor) -> PreTrainedModel:
    """Give the ARM PARM's layer, which forms the dense delta in every forward pass (arXiv 2505.06274)."""
    return _replace_adapters(model, preference, _MaterialisedLinear)


class _MaterialisedLinear(nn.Linear):
    def __init__(self, base: nn.Linear, weights: AdapterWeights, preference: Tensor, shape: ConditionedShape) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight = base.weight
        self._adapter = weights
        self._preference, self._scale = preference, shape.scale

    def forward(self, x: Tensor) -> Tensor:
        (a1, b1, w1), (a2, b2, w2) = split_parts(self._adapter)
        conditioned = (self._preference @ w2).view(len(a2), len(a2))
        delta = b1 @ w1 @ a1 + b2 @ conditioned @ a2  # two dense matrices and their sum, in float32
        return linear(x, self.weight) + self._scale * linear(x.to(delta.dtype), delta).to(x.dtype)


@torch.no_grad()
def _replace_adapters(model: PeftModel, preference: Tensor, replace: Replace) -> PreTrainedModel:
    for name, layer in adapter_layers(model).items():
        assert isinstance(layer.base_layer, nn.Linear)
        adapter = layer.active_adapters[0]
        shape = layer.pblora_config[adapter].shape
        replaced = replace(layer.base_layer, layer.weights(adapter), preference, shape)
        model.get_base_model().set_submodule(name, replaced)
    plain: PreTrainedModel = model.get_base_model()
    return plain
