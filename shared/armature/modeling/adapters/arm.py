"""ARM adapters on a model: create, save, load strictly, and self-test against a recorded probe.

A folder holds ``adapter_model.safetensors`` and ``adapter_config.json``, which stock PEFT reads too once
:mod:`armature.modeling.adapters.peft_pblora` is imported. The same adapter has the same bytes on every machine.
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
from armature.modeling.adapters.pblora_config import PBLoRAConfig
from armature.modeling.adapters.peft_pblora import adapter_layers, preferences
from armature.modeling.layers import chosen_linears

_warnings_lock = threading.Lock()
"""Warning filters are global to the process: ``catch_warnings`` is not thread-safe."""
_PROBE_TOP_TOKENS = 8
_DTYPE_NAMES: dict[torch.dtype, Dtype] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
_TOLERANCE: dict[Dtype, float] = {"float32": 1e-2, "bfloat16": 0.25, "float16": 0.25}
"""Nats by which a log-probability may differ on another machine, by the base's dtype."""


def create_arm(
    model: PreTrainedModel, attributes: Sequence[str], shape: AdapterShape, loss_form: LossForm
) -> PeftModel:
    """Attach a new adapter that has no effect yet; only its tensors are trainable.

    Initial values come from torch's global generator.

    Raises:
        InvalidRequest: The model has no layer of the kind ``shape.targets``.
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
    """List the full names of the linear layers to adapt, sorted.

    Full names, since families reuse short ones (GPT-2's c_proj is in attention and MLP).

    Raises:
        InvalidRequest: There are none.
    """
    targets = "both" if shape.targets == "attention_and_mlp" else shape.targets
    return sorted(chosen_linears(model, targets, shape.layers, "spec.adapter"))


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the active adapter of ``model`` into the new ``folder``."""
    name = model.active_adapter
    adapted = {key: layer for key, layer in adapter_layers(model).items() if name in layer.pblora_config}
    layers = {key: layer.weights(name) for key, layer in adapted.items()}
    write_adapter(StoredAdapter(model.active_peft_config, layers), folder)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Attach a saved adapter for inference.

    Raises:
        InvalidAdapter: The config is not Armature's, or the tensors are not exactly those it implies for this model:
            every key present, none extra, shapes equal, all finite.
        InvalidSafetensors: The tensor file is malformed.
    """
    return attach_stored(model, read_adapter(folder))


def attach_stored(model: PreTrainedModel, stored: StoredAdapter) -> PeftModel:
    """Attach an adapter that has been read, for inference.

    Raises:
        InvalidAdapter: The model lacks a layer of the adapter, or has it in another size.
    """
    config, layers = stored
    missing = sorted(set(config.target_modules or ()) - set(dict(model.named_modules())))
    if missing:
        raise _invalid(f"the model has no {some(missing)}")
    adapted = attach_adapter(model, config).eval().requires_grad_(False)
    attached = {name: layer.weights(adapted.active_adapter) for name, layer in adapter_layers(adapted).items()}
    require_same("layers", _shapes(attached), _shapes(layers))
    for name, weights in layers.items():
        for tensor, value in zip(attached[name], weights, strict=True):
            tensor.copy_(value)
    return adapted


@torch.no_grad()
def record_probe(model: PeftModel, token_ids: Sequence[int], preference: Mapping[str, float]) -> Canary:
    """Record the next-token log-probabilities after ``token_ids``, with the adapter on and off.

    Raises:
        InvalidAdapter: The adapter has no effect on these tokens.
    """
    arm, base = _forward_on_and_off(model, token_ids, preference)
    top = arm.topk(min(_PROBE_TOP_TOKENS, len(arm))).indices
    if torch.equal(arm, base):
        raise _invalid("the adapter has no effect on its probe")
    return Canary(
        token_ids=list(token_ids),
        preference=dict(preference),
        top_token_ids=top.tolist(),
        log_probs=arm[top].tolist(),
        base_log_probs=base[top].tolist(),
        dtype=_DTYPE_NAMES[model.dtype],
    )


def check_probe(model: PeftModel, probe: Canary) -> None:
    """Repeat the recorded ``probe`` on a loaded adapter; raises as :func:`compare_probe` does."""
    check_probe_tokens(probe, model.config.vocab_size)
    arm, base = _forward_on_and_off(model, probe.token_ids, probe.preference)
    compare_probe(probe, arm, base, model.dtype)


def check_probe_tokens(probe: Canary, vocab_size: int) -> None:
    """Refuse a probe that can not be repeated.

    Raises:
        AdapterBaseMismatch: A token is not in the base's vocabulary.
        InvalidAdapter: The lists of tokens and log-probabilities differ in length.
    """
    if not all(0 <= token < vocab_size for token in (*probe.top_token_ids, *probe.token_ids)):
        raise AdapterBaseMismatch("the adapter's probe has tokens that the base does not have")
    if not len(probe.top_token_ids) == len(probe.log_probs) == len(probe.base_log_probs):
        raise _invalid("the adapter's probe has different numbers of tokens and log-probabilities")


def compare_probe(probe: Canary, arm: torch.Tensor, base: torch.Tensor, dtype: torch.dtype) -> None:
    """Compare log-probabilities after the probe's tokens with those recorded at training.

    The base must give the recorded ones, and the adapter's effect on them must be the recorded effect, closer to that
    than to zero.

    Args:
        probe: The recorded probe.
        arm: Log-probabilities of the next token with the adapter on (V,).
        base: The same with the adapter off.
        dtype: The dtype they were computed in.

    Raises:
        AdapterBaseMismatch: The base differs from training.
        InvalidAdapter: The adapter's effect differs from training.
    """
    arm, base = (row.cpu()[probe.top_token_ids] for row in (arm, base))
    recorded_base = torch.tensor(probe.base_log_probs, dtype=torch.float32)
    recorded_effect = torch.tensor(probe.log_probs, dtype=torch.float32) - recorded_base
    tolerance = max(_TOLERANCE[probe.dtype], _TOLERANCE[_DTYPE_NAMES[dtype]])
    drift = _distance(base, recorded_base)
    if not drift <= tolerance:
        raise AdapterBaseMismatch(f"the base is {drift:.3g} nats away from the one that the adapter was trained on")
    error = _distance(arm - base, recorded_effect)
    if not error <= min(tolerance, float(recorded_effect.abs().max()) / 2):
        raise _invalid(f"the adapter acts {error:.3g} nats differently than at training")


def attach_adapter(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Call PEFT's ``get_peft_model``, for any of its methods, without a known warning."""
    with _warnings_lock, warnings.catch_warnings():
        # PEFT 0.21.2 reads a property of transformers 5.23 under its deprecated name.
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
        return get_peft_model(model, config)


@torch.no_grad()
def _forward_on_and_off(
    model: PeftModel, token_ids: Sequence[int], preference: Mapping[str, float]
) -> tuple[torch.Tensor, ...]:
    """Compute next-token log-probabilities with the adapter on and off, (V,) each, in one batch of 2."""
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
