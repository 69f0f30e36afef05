"""Forward passes in float32: the result of a float32 copy, and stored weights that stay what they are."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from armature.modeling.float32_forward import float32_forward
from tests.support.tiny_models import tiny_family

IDS = torch.tensor([[5, 9, 17, 42]])


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(IDS).logits


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_a_narrow_model_computes_as_its_float32_copy(family: str) -> None:
    model = tiny_family(family).bfloat16()
    stored = dict(model.named_parameters())
    with float32_forward(model):
        got = logits(model)
    assert got.dtype == torch.float32
    assert torch.equal(got, logits(copy.deepcopy(model).float()))
    assert all(parameter is stored[name] for name, parameter in model.named_parameters())
    assert logits(model).dtype == torch.bfloat16


def test_weights_are_rounded_as_if_they_had_been_loaded_so() -> None:
    model = tiny_family("llama")
    with float32_forward(model, torch.bfloat16):
        got = logits(model)
    assert not torch.equal(got, logits(model))
    for parameter in model.parameters():  # rotary frequencies are a buffer, which loading does not round
        parameter.data = parameter.data.bfloat16().float()
    assert torch.equal(got, logits(model))


def test_a_forward_pass_that_raises_leaves_the_stored_weights() -> None:
    model = tiny_family("llama").bfloat16()
    model.model.layers[2].mlp.act_fn = None
    with float32_forward(model), pytest.raises(TypeError):
        logits(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
