"""PBLoRA as a tuner of stock PEFT: the one file that knows both.

PEFT's ``register_peft_method`` takes only names of its closed enum, so the three tables behind it are filled here
directly; importing this module registers the method. Saving, loading, switching, disabling and deleting adapters are
then PEFT's own. ``tests/modeling/test_peft_pblora.py`` guards the seam, and the PEFT version is pinned.

The preference is an input of the forward pass, not a property of the adapter: :func:`preferences` lays down one vector
per row of the batch, and which rows the adapter touches at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import torch
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from armature.algorithms.objective_gradients import ObjectiveGradients
from armature.algorithms.pblora import PBLoRA, PBLoRAShape, apply_pblora, initialise
from armature.algorithms.row_dropout import drop_entries
from armature.modeling.layers import linear_size

PEFT_TYPE = "PBLORA"
_CAN_NOT_MERGE = (
    "a PBLoRA adapter can not be merged: its weights depend on the preference, which each request brings along; "
    "export a plain LoRA at one fixed preference instead (armature.algorithms.pblora.export_lora)"
)


@dataclass
class PBLoRAConfig(PeftConfig):
    """What PEFT stores in ``adapter_config.json``. Attributes are kept by name: their order is that of p (trap T8)."""

    attributes: list[str] = field(default_factory=list)
    rank_shared: int = 4
    rank_conditioned: int = 4
    lora_alpha: float = 8.0
    dropout: float = 0.0
    loss_form: str = "reference"
    target_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        if not self.attributes or len(set(self.attributes)) != len(self.attributes):
            raise ValueError("attributes must be distinct names, at least one")
        if self.rank_shared < 0 or self.rank_conditioned < 1:
            raise ValueError("rank_shared must be >= 0 and rank_conditioned >= 1")

    @property
    def shape(self) -> PBLoRAShape:
        """The numbers that the algorithm needs."""
        return PBLoRAShape(self.rank_shared, self.rank_conditioned, len(self.attributes), self.lora_alpha)

    def to_dict(self) -> dict[str, Any]:
        """As PEFT's, with the targets in a fixed order: PEFT turns long lists into sets, and files must not vary."""
        values: dict[str, Any] = super().to_dict()
        if isinstance(self.target_modules, set | list):
            values["target_modules"] = sorted(self.target_modules)
        return values


@dataclass(frozen=True)
class _Rows:
    """What the rows of one forward pass want. ``selected`` indexes the rows that the adapter touches; None: all."""

    count: int
    preferences: Tensor
    selected: Tensor | None
    recorder: ObjectiveGradients | None
    seeds: Tensor | None


class _Conditioning:
    """The one object through which a tuner's layers learn about the rows."""

    def __init__(self) -> None:
        self.rows: _Rows | None = None

    @contextmanager
    def use(self, rows: _Rows | None) -> Iterator[None]:
        before, self.rows = self.rows, rows
        try:
            yield
        finally:
            self.rows = before


class PBLoRALinear(nn.Module, BaseTunerLayer):
    """A linear layer with PBLoRA adapters by name. Adapter tensors are float32 whatever the base is."""

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
        """Fresh tensors under a name; trainable while the name is active."""
        fresh = initialise(*linear_size(self.base_layer), config.shape, self.base_layer.weight.device)
        for parameters, tensor in zip(self._parameters_by_field(), fresh, strict=True):
            parameters[name] = nn.Parameter(tensor)
        self.pblora_config[name] = config
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def weights(self, name: str) -> PBLoRA:
        """The four tensors of an adapter."""
        return PBLoRA(*(parameters[name] for parameters in self._parameters_by_field()))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer, plus the active adapters on the rows that want them; other rows keep the base's bits."""
        y: Tensor = self.base_layer(x, *args, **kwargs)
        names = [name for name in self.active_adapters if name in self.pblora_config]
        if self.disable_adapters or not names:
            return y
        rows = self.conditioning.rows
        if rows is None:
            raise RuntimeError(
                "this model has a PBLoRA adapter, which needs a preference per row: run it inside "
                "armature.modeling.adapters.peft_pblora.preferences(model, p_rows)"
            )
        if rows.selected is not None and not len(rows.selected):
            return y
        for name in names:
            y = self._add_delta(name, x, y, rows)
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused (trap T19)."""
        raise ValueError(_CAN_NOT_MERGE)

    def unmerge(self) -> None:
        """Refused alike: there is never anything to take out again."""
        raise ValueError(_CAN_NOT_MERGE)

    def _add_delta(self, name: str, x: Tensor, y: Tensor, rows: _Rows) -> Tensor:
        config, weights, p = self.pblora_config[name], self.weights(name), rows.preferences.to(x.device)
        by_row, seeds = _by_row(x, rows.count), rows.seeds
        if rows.selected is not None:
            by_row, p = by_row.index_select(0, rows.selected), p.index_select(0, rows.selected)
            seeds = None if seeds is None else seeds.to(x.device).index_select(0, rows.selected)
        if self.training and config.dropout:
            if seeds is None:
                raise RuntimeError(
                    "an adapter with dropout is trained with a seed per row: preferences(..., seeds=...)"
                )
            by_row = drop_entries(by_row.to(weights.a.dtype), config.dropout, seeds, self._stream)
        if rows.recorder is None:
            delta = apply_pblora(weights, by_row.to(weights.a.dtype), p, config.shape.scale)
        else:
            delta = rows.recorder.apply(self.key, weights, by_row, p, config.shape.scale)
        delta = delta.to(y.dtype)
        if rows.selected is None:
            return y + delta.view_as(y)
        target = _by_row(y, rows.count)
        return target.index_copy(0, rows.selected, target.index_select(0, rows.selected) + delta).view_as(y)

    def _parameters_by_field(self) -> tuple[nn.ParameterDict, ...]:
        return self.pblora_A, self.pblora_B, self.pblora_W1, self.pblora_W2


class PBLoRAModel(BaseTuner):
    """PEFT's view of the method: wraps the target layers and owns their conditioning."""

    uses_shared_state = True  # the conditioning: without a tuner to hold it, the layers could not be told anything
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
                raise ValueError(f"{current_key} is a {type(target).__name__}, and PBLoRA adapts linear layers only")
            layer = PBLoRALinear(target, current_key, self.conditioning)
            layer.set_adapter(self.active_adapters)
            self._replace_module(parent, target_name, layer, target)
            target = layer
        target.add_adapter(adapter_name, config)

    def _check_merge_allowed(self) -> None:
        raise ValueError(_CAN_NOT_MERGE)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT would drop ``adapter_names`` in silence, and every row would get the active adapter."""
        if kwargs.get("adapter_names") is not None:
            raise ValueError("rows choose by preference and gate, not by adapter_names: make one adapter active")
        yield


def adapter_layers(model: PeftModel) -> dict[str, PBLoRALinear]:
    """The layers of ``model`` that PBLoRA adapts, by module name.

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

    A row whose gate is False gets the base model bit for bit. With gradient checkpointing, enable it by
    :func:`enable_gradient_checkpointing`, or run the backward pass inside too (trap T10).

    Args:
        model: A PEFT model with a PBLoRA adapter.
        p_rows: (rows, K), in the order of the adapter's ``attributes``.
        gate: (rows,) bool; None: the adapter on every row.
        recorder: Collects every objective's gradients at the adapted layers.
        seeds: (rows,) int64, what decides each row's dropout; needed in training mode if the adapter has any.

    Raises:
        ValueError: A shape that does not fit the adapter or the gate; or several active adapters, and they do not know
            the same attributes in the same order (trap T8).
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
    """Recompute activations in the backward pass, under the preferences of the forward pass that they belong to.

    transformers does so for decoder layers in training mode: see :func:`set_training`.
    """
    conditioning = _tuner(model).conditioning

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), conditioning.use(conditioning.rows)

    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})


def set_training(model: PeftModel, training: bool) -> None:
    """Put the adapter in training mode, for its dropout, and out of it; the backbone's own dropout stays off.

    The flag of the decoder layers themselves follows, without that of their modules: checkpointing asks for it.
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
    """(rows, T, features), also where a model flattened rows and tokens into one dimension."""
    if x.shape[0] == rows and x.dim() == 3:
        return x
    if x.dim() == 2 and x.shape[0] % rows == 0:
        return x.reshape(rows, -1, x.shape[-1])
    raise RuntimeError(f"preferences were given for {rows} rows, and a layer met an input of shape {tuple(x.shape)}")


PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = PBLoRAConfig
PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = PBLoRAModel
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = PBLoRAModel.prefix
