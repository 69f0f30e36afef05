"""K gradients from one backward pass, against K backward passes: on one layer in float64, and through a whole model."""

import pytest
import torch
from peft import PeftModel

from armature.algorithms.conditioned_lora import AdapterWeights, ConditionedShape, apply_adapter
from armature.algorithms.modulated_lora import ModulatedShape, ScaledShape
from armature.algorithms.objective_gradients import ObjectiveGradients, apply_and_keep, weighted_gradients
from armature.algorithms.pblora import PBLoRAShape
from armature.algorithms.preference_loss import (
    attribute_losses,
    compute_rewards,
    pair_margins,
    sequence_log_probs,
)
from armature.contracts.specs.arm import AdapterShape
from armature.modeling.adapters.arm import create_arm
from armature.modeling.adapters.peft_pblora import adapter_layers, enable_gradient_checkpointing, preferences
from tests.support.tiny_models import tiny_llama

ATTRIBUTES = ["empathy", "sensitivity", "truthfulness"]
PAIRS = 4


@pytest.mark.parametrize("kind", [PBLoRAShape, ModulatedShape, ScaledShape])
def test_one_layer_equals_autograd_in_float64(kind: type[ConditionedShape]):
    torch.manual_seed(0)
    shape = kind(rank_shared=3, rank_conditioned=2, attributes=4, alpha=6.0)
    weights = AdapterWeights(*(t.double().requires_grad_() for t in shape.initialise(7, 5)))
    with torch.no_grad():
        weights.b.normal_()
    x, p = torch.randn(6, 3, 7, dtype=torch.double), torch.rand(6, 4, dtype=torch.double)
    grad_output, row_weights = torch.randn(6, 3, 5, dtype=torch.double), torch.randn(6, 2, dtype=torch.double)
    delta, kept = apply_and_keep(weights, x, p, shape)
    found, grad_low = weighted_gradients(weights, kept, grad_output, row_weights, shape)
    expected_delta = apply_adapter(weights, x.requires_grad_(), p, shape)
    torch.testing.assert_close(delta, expected_delta, atol=1e-12, rtol=1e-12)
    per_row = (expected_delta * grad_output).sum((1, 2))
    (expected_x,) = torch.autograd.grad(per_row.sum(), x, retain_graph=True)
    torch.testing.assert_close(grad_low @ weights.a, expected_x, atol=1e-10, rtol=1e-10)
    for k in range(2):
        expected = torch.autograd.grad(per_row, weights, row_weights[:, k], retain_graph=True)
        for tensor, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(tensor[k], reference, atol=1e-10, rtol=1e-10)


def make_arm(targets: str = "attention_and_mlp", dropout: float = 0.0) -> PeftModel:
    torch.manual_seed(1)
    shape = AdapterShape(rank_shared=2, rank_conditioned=3, dropout=dropout, layers="all", targets=targets)
    arm = create_arm(tiny_llama(), ATTRIBUTES, shape, "sum")
    for layer in adapter_layers(arm).values():
        torch.nn.init.normal_(layer.pblora_B["default"], std=0.2)
    return arm.train()


def make_batch(seed: int = 2) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(PAIRS, 3, generator=g).softmax(-1)
    return {
        "ids": torch.randint(3, 259, (2 * PAIRS, 7), generator=g),
        "mask": torch.rand(2 * PAIRS, 7, generator=g) > 0.4,
        "labels": torch.randint(-1, 2, (PAIRS, 3), generator=g),
        "p": p,
    }


def margins_and_objectives(arm: PeftModel, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    rewards = compute_rewards(
        sequence_log_probs(arm(batch["ids"]).logits, batch["ids"], batch["mask"]), batch["mask"].sum(-1), "sum"
    )
    margins = pair_margins(rewards)
    losses = attribute_losses(margins, batch["labels"], batch["p"], torch.tensor([0.5, 1.0, 2.0]))
    return margins, losses.sum(0) / PAIRS


def reference_gradients(arm: PeftModel, batch: dict[str, torch.Tensor]) -> dict[str, AdapterWeights]:
    """K backward passes through the whole model."""
    with preferences(arm, batch["p"].repeat_interleave(2, 0), seeds=torch.arange(2 * PAIRS)):
        _, objectives = margins_and_objectives(arm, batch)
        layers = {name: layer.weights("default") for name, layer in adapter_layers(arm).items()}
        parameters = [tensor for weights in layers.values() for tensor in weights]
        rows = [torch.autograd.grad(objective, parameters, retain_graph=True) for objective in objectives]
    stacked = [torch.stack(column) for column in zip(*rows, strict=True)]
    return {name: AdapterWeights(*stacked[4 * i : 4 * i + 4]) for i, name in enumerate(layers)}


def one_backward(arm: PeftModel, *batches: dict[str, torch.Tensor]) -> dict[str, AdapterWeights]:
    recorder = ObjectiveGradients()
    for batch in batches:
        with preferences(arm, batch["p"].repeat_interleave(2, 0), recorder=recorder, seeds=torch.arange(2 * PAIRS)):
            margins, objectives = margins_and_objectives(arm, batch)
            recorder.backward(margins, objectives)
    return recorder.layers


def assert_same(found: dict[str, AdapterWeights], expected: dict[str, AdapterWeights], tolerance: float = 1e-5) -> None:
    assert set(found) == set(expected)
    for name in expected:
        for tensor, reference in zip(found[name], expected[name], strict=True):
            error = (tensor - reference).norm() / reference.norm().clamp(min=1e-12)
            assert error <= tolerance, (name, error)


@pytest.mark.parametrize("targets", ["attention", "attention_and_mlp"])
def test_one_backward_equals_k_backward_passes(targets):
    arm, batch = make_arm(targets), make_batch()
    found, expected = one_backward(arm, batch), reference_gradients(arm, batch)
    assert_same(found, expected)
    assert all(tensor.norm() > 0 for weights in expected.values() for tensor in weights)
    assert all(parameter.grad is None for parameter in arm.parameters())


@pytest.mark.trap(10)
def test_gradients_hold_under_activation_checkpointing():
    expected = reference_gradients(make_arm(dropout=0.3), make_batch())
    arm = make_arm(dropout=0.3)
    enable_gradient_checkpointing(arm)
    assert_same(one_backward(arm, make_batch()), expected)


def test_dropout_masks_are_those_of_the_forward_pass():
    arm, batch = make_arm(dropout=0.5), make_batch()
    found = one_backward(arm, batch)
    assert_same(found, reference_gradients(arm, batch))


@pytest.mark.trap(13)
def test_micro_batches_add_up():
    arm, first, second = make_arm(), make_batch(2), make_batch(3)
    expected = {
        name: AdapterWeights(*map(torch.add, weights, one_backward(arm, second)[name]))
        for name, weights in one_backward(arm, first).items()
    }
    assert_same(one_backward(arm, first, second), expected)


def test_a_masked_attribute_has_no_gradient():
    batch = make_batch()
    batch["labels"][:, 1] = 0
    for weights in one_backward(make_arm(), batch).values():
        assert not any(tensor[1].any() for tensor in weights)
        assert any(tensor[0].any() for tensor in weights)


def test_misuse_raises():
    arm, batch = make_arm(), make_batch()
    with preferences(arm, batch["p"].repeat_interleave(2, 0)):
        margins, objectives = margins_and_objectives(arm, batch)
    with pytest.raises(ValueError, match="no adapter layer was applied"):
        ObjectiveGradients().backward(margins, objectives)
    recorder = ObjectiveGradients()
    with preferences(arm, batch["p"].repeat_interleave(2, 0), recorder=recorder):
        margins, objectives = margins_and_objectives(arm, batch)
    with pytest.raises(RuntimeError, match="outside"):
        objectives.sum().backward()
