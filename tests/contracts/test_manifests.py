"""Manifests written before a field existed keep their digests: what such a field is by default is not written."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from armature.contracts.artifacts import ArtifactMetadata

CHECKPOINT: dict[str, Any] = {
    "type": "checkpoint",
    "model_digest": "1" * 64,
    "tokenizer_digest": "2" * 64,
    "weights_digest": "3" * 64,
    "architecture": "LlamaForCausalLM",
    "parameters": 10,
    "dtype": "float32",
    "vocab_size": 4,
    "context_length": 8,
    "chat_template": False,
    "license_note": None,
    "vocabulary_digest": "4" * 64,
    "hidden_size": 2,
    "layers": 1,
}
VECTOR: dict[str, Any] = {
    "type": "task_vector",
    "base_model_digest": "1" * 64,
    "rule": "global",
    "density": 0.1,
    "kept": 1,
    "total": 10,
    "norm": 1.0,
    "dense_norm": 2.0,
    "tensors": 1,
    "rows": {"harmful_pairs": 3},
}
ADAPTER: dict[str, Any] = {
    "type": "adapter",
    "attributes": ["empathy"],
    "rank_shared": 1,
    "rank_conditioned": 1,
    "alpha": 2.0,
    "loss_form": "reference",
    "beta": {"empathy": 2.0},
    "backbone": {
        "model_digest": "1" * 64,
        "tokenizer_digest": "2" * 64,
        "harm_vector_digest": None,
        "harm_scale": 0.0,
    },
    "backbone_kind": "base",
    "canary": {
        "token_ids": [5],
        "preference": {"empathy": 1.0},
        "log_probs": [-1.0],
        "top_token_ids": [3],
        "base_log_probs": [-2.0],
        "dtype": "float32",
    },
    "parameters": 9,
    "rows": {"pairs": 2},
    "validation": None,
}


@pytest.mark.parametrize("older", [CHECKPOINT, VECTOR, ADAPTER], ids=lambda older: older["type"])
def test_an_older_manifests_metadata_is_written_as_it_was_read(older: dict[str, Any]) -> None:
    metadata: Any = TypeAdapter(ArtifactMetadata).validate_python(older)
    assert metadata.model_dump(mode="json") == older
