"""Example specs for the OpenAPI document, one per job kind."""

from __future__ import annotations

from typing import Any

from fastapi.openapi.models import Example

_BASE_MODEL, _TASK_VECTOR, _ADAPTER, _DATASET = "mdl_...", "art_...", "art_...", "ds_..."

_SPECS: dict[str, dict[str, Any]] = {
    "base_model.import": {
        "kind": "base_model.import",
        "name": "counsel-7b",
        "source": {"type": "files", "files": {"config.json": "file_...", "model.safetensors": "file_..."}},
    },
    "harm_vector.build": {
        "kind": "harm_vector.build",
        "base_model": _BASE_MODEL,
        "harmful_pairs": _DATASET,
        "selection": {"density": 0.1},
        "scale": 1.5,
        "seed": 7,
    },
    "harm_vector.sweep": {
        "kind": "harm_vector.sweep",
        "base_model": _BASE_MODEL,
        "harmful_pairs": _DATASET,
        "harmful_prompts": _DATASET,
        "benign_pairs": _DATASET,
        "lexicon": _DATASET,
        "grid": {"densities": [0.05, 0.1], "scales": [1.0, 1.5, 2.0], "layers": ["all", "upper_half"]},
        "seed": 7,
    },
    "arm.train": {
        "kind": "arm.train",
        "base_model": _BASE_MODEL,
        "harm_vector": _TASK_VECTOR,
        "pairs": _DATASET,
        "attributes": ["empathy", "truthfulness"],
        "training": {"steps": 250},
    },
    "arm.extend": {
        "kind": "arm.extend",
        "base_model": _BASE_MODEL,
        "harm_vector": _TASK_VECTOR,
        "arm": _ADAPTER,
        "attribute": "brevity",
        "pairs": _DATASET,
    },
    "arm.export": {
        "kind": "arm.export",
        "arm": _ADAPTER,
        "preference": {"empathy": 2, "truthfulness": 1},
    },
    "arm.import": {
        "kind": "arm.import",
        "base_model": _BASE_MODEL,
        "adapter_config": "file_...",
        "adapter_weights": "file_...",
        "attributes": ["harmlessness", "helpfulness"],
    },
    "checkpoint.export": {
        "kind": "checkpoint.export",
        "base_model": _BASE_MODEL,
        "harm_vector": _TASK_VECTOR,
        "harm_scale": 1.0,
        "arm": _ADAPTER,
        "preference": {"empathy": 1},
    },
    "evaluation.run": {
        "kind": "evaluation.run",
        "base_model": _BASE_MODEL,
        "harm_vector": _TASK_VECTOR,
        "arm": _ADAPTER,
        "lexicon": _DATASET,
        "prompts": _DATASET,
        "attributes": ["empathy", "truthfulness"],
        "guidance": {"guidance_weight": 2.0, "safe_set_delta": 3.0},
        "sda": {"instruction": "Answer gently.", "strength": 2.0},
    },
    "pairs.generate": {
        "kind": "pairs.generate",
        "prompts": _DATASET,
        "teachers": [{"type": "base_model", "base_model": _BASE_MODEL}],
        "judges": [{"type": "likelihood_ratio", "base_model": _BASE_MODEL}],
        "attributes": ["empathy", "truthfulness"],
        "cross_label": True,
        "seed": 7,
    },
}

JOB_EXAMPLES: dict[str, Example] = {
    kind: {"summary": kind, "value": {"spec": spec, "metadata": {"ticket": "A-12"}}} for kind, spec in _SPECS.items()
}
