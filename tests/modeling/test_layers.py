"""Selection of projections: experts in parameters of three dimensions, shares, adapters that can not reach them."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from armature.errors import InvalidRequest
from armature.modeling.layers import chosen_linears, chosen_weights, split_experts, weight_share
from tests.support.tiny_models import tiny_family, tiny_llama

MOE = {"num_hidden_layers": 2, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}


@pytest.fixture
def mixture() -> PreTrainedModel:
    return tiny_family("qwen3_moe", **MOE)


def test_experts_are_projections_of_the_mlp(mixture: PreTrainedModel) -> None:
    mlp = chosen_weights(mixture, "mlp", "all")
    experts = [f"model.layers.{layer}.mlp.experts.{name}" for layer in (0, 1) for name in ("gate_up_proj", "down_proj")]
    assert sorted(mlp) == sorted(experts)
    assert mlp[experts[0]].shape == (4, 48, 32)
    attention = chosen_weights(mixture, "attention", [1])
    assert sorted(name.rsplit(".", 2)[1] for name in attention) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    both = chosen_weights(mixture, "both", "all")
    modules, parameters = split_experts(both, mixture)
    assert (len(modules), sorted(parameters)) == (8, sorted(experts))


def test_the_share_counts_experts_and_routers(mixture: PreTrainedModel) -> None:
    matrices = {n: p for n, p in mixture.named_parameters() if ".layers." in n and p.dim() > 1}
    attention = chosen_weights(mixture, "attention", "all")
    total = sum(p.numel() for p in matrices.values())
    routers = sum(p.numel() for n, p in matrices.items() if "mlp.gate" in n)
    assert weight_share(mixture, attention) == sum(p.numel() for p in attention.values()) / total < 0.35
    assert weight_share(mixture, chosen_weights(mixture, "both", "all")) == 1 - routers / total
    dense = tiny_llama()
    assert weight_share(dense, chosen_weights(dense, "both", "all")) == 1
    assert weight_share(dense, chosen_weights(dense, "both", "upper_half")) == 0.5


def test_adapters_of_linear_modules_refuse_experts_by_name(mixture: PreTrainedModel) -> None:
    with pytest.raises(
        InvalidRequest, match=r"layers\.0\.mlp\.experts\.gate_up_proj.* set spec.adapter.targets"
    ) as caught:
        chosen_linears(mixture, "both", "all", "spec.adapter")
    assert caught.value.param == "spec.adapter.targets"
    assert len(chosen_linears(mixture, "attention", "all")) == 8
