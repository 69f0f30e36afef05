"""ARM adapters: create one on a model, write it, read it back strictly, and prove that it acts as it was trained.

A folder holds ``adapter_model.safetensors`` and ``adapter_config.json``, which stock PEFT reads too once
:mod:`armature.modeling.adapters.peft_pblora` is imported. The same adapter gives the same bytes, on every machine.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from armature.algorithms.pblora import PBLoRA
from armature.contracts.artifacts import Canary, Dtype, LossForm
from armature.contracts.preferences import preference_vector
from armature.contracts.specs.arm import AdapterShape
from armature.errors import AdapterBaseMismatch, InvalidAdapter
from armature.modeling.adapters.files import (
    WEIGHTS,
    StoredAdapter,
    read_adapter,
    require_same,
    some,
    write_adapter,
)
from armature.modeling.adapters.peft_pblora import PBLoRAConfig, adapter_layers, preferences
from armature.modeling.layers import chosen_linears

_attaching = threading.Lock()
"""Which warnings are shown is the process's business: whoever changes that must be alone."""
_CANARY_TOP_TOKENS = 8
_DTYPE_NAMES: dict[torch.dtype, Dtype] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
_TOLERANCE: dict[Dtype, float] = {"float32": 1e-2, "bfloat16": 0.25, "float16": 0.25}
"""Nats by which another machine's arithmetic may move a log-probability, by the base's dtype."""


def create_arm(
    model: PreTrainedModel, attributes: Sequence[str], shape: AdapterShape, loss_form: LossForm
) -> PeftModel:
    """Attach a fresh adapter; only its tensors are trainable. It starts as the identity.

    Initial values come from torch's global generator.

    Raises:
        InvalidRequest: The model has no layer of the kind that ``shape.targets`` asks for.
    """
    config = PBLoRAConfig(
        attributes=list(attributes),
        rank_shared=shape.rank_shared,
        rank_conditioned=shape.rank_conditioned,
        lora_alpha=shape.alpha,
        dropout=shape.dropout,
        loss_form=loss_form,
        target_modules=find_targets(model, shape),
    )
    return attach_adapter(model, config)


def find_targets(model: PreTrainedModel, shape: AdapterShape) -> list[str]:
    """Full names of the linear layers to adapt, sorted. Full names, because families reuse short ones (GPT-2's c_proj).

    Raises:
        InvalidRequest: There are none.
    """
    targets = "both" if shape.targets == "attention_and_mlp" else shape.targets
    return sorted(chosen_linears(model, targets, shape.layers, "spec.adapter"))


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the active adapter into a new folder."""
    name = model.active_adapter
    adapted = {key: layer for key, layer in adapter_layers(model).items() if name in layer.pblora_config}
    layers = {key: layer.weights(name) for key, layer in adapted.items()}
    write_adapter(StoredAdapter(model.active_peft_config, layers), folder)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Attach a saved adapter for inference.

    Raises:
        InvalidAdapter: The config is not one of ours, or the tensors are not exactly those it implies for this model:
            every key present, none extra, shapes equal, all finite.
        InvalidSafetensors: The tensor file is malformed.
    """
    return attach_stored(model, read_adapter(folder))


def attach_stored(model: PreTrainedModel, stored: StoredAdapter) -> PeftModel:
    """Attach an adapter that has been read, for inference.

    Raises:
        InvalidAdapter: The model has not exactly the layers that it adapts, in their sizes.
    """
    config, layers = stored
    missing = sorted(set(config.target_modules or ()) - set(dict(model.named_modules())))
    if missing:
        raise _invalid(f"the model has no {some(missing)}")
    adapted = attach_adapter(model, config).eval().requires_grad_(False)
    own = {name: layer.weights(adapted.active_adapter) for name, layer in adapter_layers(adapted).items()}
    require_same("layers", _shapes(own), _shapes(layers))
    for name, weights in layers.items():
        for tensor, value in zip(own[name], weights, strict=True):
            tensor.copy_(value)
    return adapted


@torch.no_grad()
def record_canary(model: PeftModel, token_ids: Sequence[int], preference: Mapping[str, float]) -> Canary:
    """Note what the trained adapter says after ``token_ids`` under a preference, and what the base says.

    Raises:
        InvalidAdapter: The adapter changes nothing there.
    """
    arm, base = _probe(model, token_ids, preference)
    top = arm.topk(min(_CANARY_TOP_TOKENS, len(arm))).indices
    if torch.equal(arm, base):
        raise _invalid("the adapter has no effect on its canary")
    return Canary(
        token_ids=list(token_ids),
        preference=dict(preference),
        top_token_ids=top.tolist(),
        log_probs=arm[top].tolist(),
        base_log_probs=base[top].tolist(),
        dtype=_DTYPE_NAMES[model.dtype],
    )


def check_canary(model: PeftModel, canary: Canary) -> None:
    """Repeat the canary on a loaded adapter; raises as :func:`compare_canary` does."""
    check_canary_tokens(canary, model.config.vocab_size)
    arm, base = _probe(model, canary.token_ids, canary.preference)
    compare_canary(canary, arm, base, model.dtype)


def check_canary_tokens(canary: Canary, vocab_size: int) -> None:
    """Refuse a canary that can not be repeated.

    Raises:
        AdapterBaseMismatch: It names tokens that the base does not have.
        InvalidAdapter: It is not whole.
    """
    if not all(0 <= token < vocab_size for token in (*canary.top_token_ids, *canary.token_ids)):
        raise AdapterBaseMismatch("the adapter's canary names tokens that the base does not have")
    if not len(canary.top_token_ids) == len(canary.log_probs) == len(canary.base_log_probs):
        raise _invalid("the adapter's canary does not have as many log-probabilities as tokens")


def compare_canary(canary: Canary, arm: torch.Tensor, base: torch.Tensor, dtype: torch.dtype) -> None:
    """Compare what is said after the canary's tokens with what was said at training.

    The base's log-probabilities must be the recorded ones, and what the adapter adds to them must be what it added at
    training, closer to that than to nothing.

    Args:
        canary: As it was recorded.
        arm: Log-probabilities of the next token with the adapter on (V,).
        base: The same with it off.
        dtype: In which they were computed.

    Raises:
        AdapterBaseMismatch: The base says something else than at training.
        InvalidAdapter: The adapter does.
    """
    arm, base = (row.cpu()[canary.top_token_ids] for row in (arm, base))
    recorded_base = torch.tensor(canary.base_log_probs, dtype=torch.float32)
    recorded_effect = torch.tensor(canary.log_probs, dtype=torch.float32) - recorded_base
    tolerance = max(_TOLERANCE[canary.dtype], _TOLERANCE[_DTYPE_NAMES[dtype]])
    drift = _distance(base, recorded_base)
    if not drift <= tolerance:
        raise AdapterBaseMismatch(f"the base is {drift:.3g} nats away from the one that the adapter was trained on")
    error = _distance(arm - base, recorded_effect)
    if not error <= min(tolerance, float(recorded_effect.abs().max()) / 2):
        raise _invalid(f"the adapter acts {error:.3g} nats differently than at training")


def attach_adapter(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """PEFT's ``get_peft_model``, for any of its methods, without the warning that this pair of versions gives."""
    with _attaching, warnings.catch_warnings():
        # PEFT 0.21.2 asks transformers 5.23 for a property under its old name.
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
        return get_peft_model(model, config)


@torch.no_grad()
def _probe(model: PeftModel, token_ids: Sequence[int], preference: Mapping[str, float]) -> tuple[torch.Tensor, ...]:
    """Log-probabilities of the next token with the adapter on and off, (V,) each, from one forward of two rows."""
    weights = preference_vector(preference, model.active_peft_config.attributes)
    device = model.device
    was_training = model.training
    model.eval()
    gate = torch.tensor([True, False])
    with preferences(model, torch.tensor([weights, weights], device=device), gate):
        logits = model(input_ids=torch.tensor([list(token_ids)] * 2, device=device)).logits[:, -1]
    model.train(was_training)
    log_probs: torch.Tensor = logits.float().log_softmax(-1).cpu()
    return log_probs.unbind(0)


def _shapes(layers: Mapping[str, PBLoRA]) -> dict[str, list[torch.Size]]:
    return {name: [tensor.shape for tensor in weights] for name, weights in layers.items()}


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def _invalid(reason: str) -> InvalidAdapter:
    return InvalidAdapter(reason, param=WEIGHTS)
