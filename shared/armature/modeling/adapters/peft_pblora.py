"""Preference-conditioned adapters as a tuner of stock PEFT: layers, conditioning, registration.

The tuner, and the tensors in files, have the name of the first kind, PBLoRA; the config names the kind.

PEFT's ``register_peft_method`` accepts only names of its closed enum, so the three tables behind it are filled here;
importing this module registers the method. Saving, loading, switching, disabling and deleting adapters are then PEFT's
own. ``tests/modeling/adapters/test_peft_pblora.py`` guards the seam, and the PEFT version is pinned.

The preference is an input of the forward pass, not a property of the adapter: :func:`preferences` sets one vector per
row of the batch, and the rows that the adapter applies to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from armature.algorithms.conditioned_lora import AdapterWeights, apply_adapter
from armature.algorithms.objective_gradients import ObjectiveGradients
from armature.algorithms.row_dropout import drop_entries
from armature.modeling.adapters.pblora_config import PEFT_TYPE, PBLoRAConfig
from armature.modeling.layers import linear_size

_CAN_NOT_MERGE = (
    "a PBLoRA adapter can not be merged: its weights depend on the preference, which each request brings along; "
    "export a plain LoRA at one fixed preference instead (armature.algorithms.conditioned_lora.export_lora)"
)


@dataclass(frozen=True)
class _Rows:
    """The conditioning of a batch's rows. ``selected``: the rows that the adapter applies to; None: all."""

    count: int
    preferences: Tensor
    selected: Tensor | None
    recorder: ObjectiveGradients | None
    seeds: Tensor | None


class _Conditioning:
    """The state that a tuner shares with its layers: the conditioning of the current forward pass."""

    def __init__(self) -> None:
        self.rows: _Rows | None = None

    @contextmanager
    def use(self, rows: _Rows | None) -> Iterator[None]:
        previous, self.rows = self.rows, rows
        try:
            yield
        finally:
            self.rows = previous


class PBLoRALinear(nn.Module, BaseTunerLayer):
    """A linear layer with PBLoRA adapters by name. Adapter tensors are float32 whatever the base's dtype."""

    adapter_layer_names = ("pblora_A", "pblora_B", "pblora_W1", "pblora_W2")
    other_param_names = ("pblora_config",)
    active_adapters: list[str]
    set_adapter: Callable[..., None]

    def __init__(self, base_layer: nn.Linear | Conv1D, key: str, conditioning: _Conditioning) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.key = key
        self._stream = crc32(key.encode())
        self.conditioning = conditioning
        self.pblora_A, self.pblora_B = nn.ParameterDict(), nn.ParameterDict()
        self.pblora_W1, self.pblora_W2 = nn.ParameterDict(), nn.ParameterDict()
        self.pblora_config: dict[str, PBLoRAConfig] = {}
        self.merged_adapters: list[str] = []

    def add_adapter(self, name: str, config: PBLoRAConfig) -> None:
        """Initialize the tensors of adapter ``name``, which are trainable while it is active."""
        initial = config.shape.initialise(*linear_size(self.base_layer), self.base_layer.weight.device)
        for parameters, tensor in zip(self._parameters_by_field(), initial, strict=True):
            parameters[name] = nn.Parameter(tensor)
        self.pblora_config[name] = config
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def weights(self, name: str) -> AdapterWeights:
        """Return the four tensors of adapter ``name``."""
        return AdapterWeights(*(parameters[name] for parameters in self._parameters_by_field()))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the base layer, and the active adapters on the selected rows; others stay bit-identical."""
        y: Tensor = self.base_layer(x, *args, **kwargs)
        names = [name for name in self.active_adapters if name in self.pblora_config]
        if self.disable_adapters or not names:
            return y
        rows = self.conditioning.rows
        if rows is None:
            raise RuntimeError(
                "a PBLoRA adapter needs a preference per row: run the model inside "
                "armature.modeling.adapters.peft_pblora.preferences(model, p_rows)"
            )
        if rows.selected is not None and not len(rows.selected):
            return y
        for name in names:
            y = self.add_delta(name, x, y, rows)
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: the delta depends on each request's preference."""
        raise ValueError(_CAN_NOT_MERGE)

    def unmerge(self) -> None:
        """Refuse: nothing is ever merged."""
        raise ValueError(_CAN_NOT_MERGE)

    def add_delta(self, name: str, x: Tensor, y: Tensor, rows: _Rows) -> Tensor:
        """Add an adapter's delta for the input ``x`` to the dense output ``y``, each (batch, seq, features)."""
        config, weights, p = self.pblora_config[name], self.weights(name), rows.preferences.to(x.device)
        by_row, seeds = _by_row(x, rows.count), rows.seeds
        if rows.selected is not None:
            by_row, p = by_row.index_select(0, rows.selected), p.index_select(0, rows.selected)
            seeds = None if seeds is None else seeds.to(x.device).index_select(0, rows.selected)
        if self.training and config.dropout:
            if seeds is None:
                raise RuntimeError("training an adapter with dropout needs a seed per row: preferences(..., seeds=...)")
            by_row = drop_entries(by_row.to(weights.a.dtype), config.dropout, seeds, self._stream)
        if rows.recorder is None:
            delta = apply_adapter(weights, by_row.to(weights.a.dtype), p, config.shape)
        else:
            delta = rows.recorder.apply(self.key, weights, by_row, p, config.shape)
        delta = delta.to(y.dtype)
        if rows.selected is None:
            return y + delta.view_as(y)
        target = _by_row(y, rows.count)
        return target.index_copy(0, rows.selected, target.index_select(0, rows.selected) + delta).view_as(y)

    def _parameters_by_field(self) -> tuple[nn.ParameterDict, ...]:
        return self.pblora_A, self.pblora_B, self.pblora_W1, self.pblora_W2


class PBLoRAModel(BaseTuner):
    """PEFT's tuner of the method: wraps the target layers and owns their conditioning."""

    uses_shared_state = True  # the conditioning, through which the layers get their preferences
    prefix = "pblora_"
    tuner_layer_cls = PBLoRALinear
    target_module_mapping: Mapping[str, list[str]] = {}

    def layers(self) -> dict[str, PBLoRALinear]:
        """The adapted layers by module name."""
        return {module.key: module for module in self.model.modules() if isinstance(module, PBLoRALinear)}

    def _pre_injection_hook(self, model: nn.Module, config: PBLoRAConfig, adapter_name: str) -> None:
        self.conditioning = _Conditioning()

    def _create_and_replace(
        self, config: PBLoRAConfig, adapter_name: str, target: Any, target_name: str, parent: Any, current_key: str
    ) -> None:
        if not isinstance(target, PBLoRALinear):
            if not isinstance(target, nn.Linear | Conv1D):
                raise ValueError(f"{current_key} is a {type(target).__name__}; PBLoRA adapts linear layers only")
            layer = PBLoRALinear(target, current_key, self.conditioning)
            layer.set_adapter(self.active_adapters)
            self._replace_module(parent, target_name, layer, target)
            target = layer
        target.add_adapter(adapter_name, config)

    def _check_merge_allowed(self) -> None:
        raise ValueError(_CAN_NOT_MERGE)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse ``adapter_names``: PEFT would ignore it, and apply the active adapter to every row."""
        if kwargs.get("adapter_names") is not None:
            raise ValueError("adapter_names is not supported: activate one adapter, and use preferences and gate")
        yield


def adapter_layers(model: PeftModel) -> dict[str, PBLoRALinear]:
    """Return the layers of ``model`` that PBLoRA adapts, by module name.

    Raises:
        TypeError: The model has no PBLoRA adapter.
    """
    return _tuner(model).layers()


@contextmanager
def preferences(
    model: PeftModel,
    p_rows: Tensor,
    gate: Tensor | None = None,
    recorder: ObjectiveGradients | None = None,
    seeds: Tensor | None = None,
) -> Iterator[None]:
    """Run ``model`` under one preference per row of the batch.

    A row whose gate is False gets the base model's result, bit for bit. Gradient checkpointing recomputes the forward
    pass later, without these preferences: turn it on by :func:`enable_gradient_checkpointing`, or run the backward pass
    inside this block too.

    Args:
        model: A PEFT model with a PBLoRA adapter.
        p_rows: (rows, K), in the order of the adapter's ``attributes``.
        gate: (rows,) bool; None: the adapter on every row.
        recorder: Collects every objective's gradients at the adapted layers.
        seeds: (rows,) int64, the seed of each row's dropout; needed in training mode if the adapter has dropout.

    Raises:
        ValueError: A shape does not fit the adapter or the gate, or the active adapters' attributes or their order
            differ.
        TypeError: The model has no PBLoRA adapter.
    """
    tuner = _tuner(model)
    attributes: list[str] = tuner.peft_config[tuner.active_adapters[0]].attributes
    if any(tuner.peft_config[name].attributes != attributes for name in tuner.active_adapters):
        raise ValueError(f"one preference can not serve active adapters whose attributes differ from {attributes}")
    if p_rows.dim() != 2 or p_rows.shape[1] != len(attributes):
        raise ValueError(f"p_rows must be (rows, {len(attributes)}) for {attributes}, not {tuple(p_rows.shape)}")
    if gate is not None and (gate.dtype != torch.bool or gate.shape != p_rows.shape[:1]):
        raise ValueError(f"gate must be bool of shape ({len(p_rows)},), not {gate.dtype} {tuple(gate.shape)}")
    device = next(tuner.model.parameters()).device
    selected = None if gate is None or bool(gate.all()) else gate.nonzero().flatten().to(device)
    rows = _Rows(len(p_rows), p_rows.to(device, torch.float32), selected, recorder, seeds)
    with tuner.conditioning.use(rows):
        yield


def enable_gradient_checkpointing(model: PeftModel) -> None:
    """Recompute activations in the backward pass, under the preferences of their forward pass.

    transformers does so for decoder layers in training mode only: see :func:`set_training`.
    """
    conditioning = _tuner(model).conditioning

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), conditioning.use(conditioning.rows)

    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})


def set_training(model: PeftModel, training: bool) -> None:
    """Set the adapter's training mode, for its dropout; the backbone's own dropout stays off.

    The decoder layers get the flag too, but not their modules: gradient checkpointing reads it there.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, PBLoRALinear | GradientCheckpointingLayer):
            module.training = training


def _tuner(model: PeftModel) -> PBLoRAModel:
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, PBLoRAModel):
        raise TypeError("the model has no PBLoRA adapter")
    return tuner


def _by_row(x: Tensor, rows: int) -> Tensor:
    """Reshape to (rows, T, features): some models flatten rows and tokens into one dimension."""
    if x.shape[0] == rows and x.dim() == 3:
        return x
    if x.dim() == 2 and x.shape[0] % rows == 0:
        return x.reshape(rows, -1, x.shape[-1])
    raise RuntimeError(f"preferences are set for {rows} rows, but a layer's input has shape {tuple(x.shape)}")


PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = PBLoRAConfig
PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = PBLoRAModel
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = PBLoRAModel.prefix
