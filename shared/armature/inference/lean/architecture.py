"""The models that the lean runner supports: decided from the configuration, feature by feature.

A feature that is not known to be computed exactly refuses the model, which then runs on transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel

_QK_NORM = {"llama": False, "mistral": False, "qwen2": False, "qwen3": True}
"""The supported families, and whether they normalise queries and keys."""
_STATIC_ROPE = frozenset({"default", "linear", "llama3"})
"""Rotary embeddings whose frequencies do not depend on the sequence."""
_DTYPES = frozenset({torch.float32, torch.bfloat16})

_CHECKS: dict[str, Callable[[PretrainedConfig], bool]] = {
    "model_type": lambda c: c.model_type in _QK_NORM,
    "hidden_act": lambda c: c.hidden_act == "silu",
    "sliding_window": lambda c: not (getattr(c, "sliding_window", None) and getattr(c, "use_sliding_window", True)),
    "layer_types": lambda c: set(getattr(c, "layer_types", None) or ()) <= {"full_attention"},
    "rope_parameters": lambda c: (
        c.rope_parameters.get("rope_type", "default") in _STATIC_ROPE
        and c.rope_parameters.get("partial_rotary_factor", 1.0) == 1.0
    ),
    "quantization_config": lambda c: getattr(c, "quantization_config", None) is None,
}


@dataclass(frozen=True)
class Architecture:
    """The sizes that the forward pass needs."""

    heads: int
    kv_heads: int
    head_width: int
    eps: float
    qk_norm: bool

    @classmethod
    def of(cls, config: PretrainedConfig) -> Architecture:
        """Read the sizes from a supported model's configuration."""
        return cls(
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            eps=config.rms_norm_eps,
            qk_norm=_QK_NORM[config.model_type],
        )


def unfit_field(config: PretrainedConfig) -> str | None:
    """Name the first field of a configuration that the lean runner can not honour."""
    return next((field for field, fits in _CHECKS.items() if not fits(config)), None)


def refusal(model: PreTrainedModel) -> str | None:
    """Name the first configuration field that the lean runner can not honour; None: it runs this model."""
    return unfit_field(model.config) or (None if model.dtype in _DTYPES else "dtype")


def supports(model: PreTrainedModel) -> bool:
    """Tell whether the lean runner runs this model."""
    return refusal(model) is None
