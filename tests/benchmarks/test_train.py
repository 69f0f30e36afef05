"""``python -m benchmarks train`` at toy size: every figure, and the gradients of K backward passes."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from armature.modeling.adapters.peft_pblora import adapter_layers, preferences
from benchmarks.commands import app
from benchmarks.rivals import parm_arm
from tests.support.adapters import add_random_adapter
from tests.support.tiny_models import tiny_llama

RATIOS = {"step_ratio", "vs_k_backwards", "vs_materialised"}
TOY = ["train", "--json", "--size", "tiny", "--pairs", "2", "--tokens", "8", "4", "--rounds", "2"]


@pytest.mark.parametrize(
    ("dtype", "ratios"), [("float32", RATIOS), ("bfloat16", RATIOS | {"vs_materialised_autocast"})]
)
def test_the_report_has_every_figure(dtype: str, ratios: set[str]) -> None:
    result = CliRunner().invoke(app, [*TOY, "--dtype", dtype, "--layers", "upper_half"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert set(report) == {"machine", "model", "seconds", "objective_gradients"}
    assert report["machine"]["threads"] == torch.get_num_threads()
    model = report["model"]
    assert (model["parameters"], model["objectives"], model["dtype"]) == (127_296, 5, dtype)
    assert 0 < model["adapter_parameters"] < model["parameters"]
    figures = report["objective_gradients"]
    quartiles = figures.pop("quartiles")
    assert 0 < figures.pop("max_rel_err") <= 1e-5
    assert set(figures) == set(quartiles) == ratios
    assert all(0 < low <= figures[name] <= high for name, (low, high) in quartiles.items())
    assert min(report["seconds"].values()) > 0


def test_the_materialised_rival_has_the_same_gradients() -> None:
    attributes, p = ["empathy", "truthfulness"], torch.tensor([0.3, 0.7])
    ids = torch.tensor([[5, 6, 7, 8]])
    arm = add_random_adapter(tiny_llama(), attributes).requires_grad_(True)
    ours = [tensor for layer in adapter_layers(arm).values() for tensor in layer.weights("default")]
    with preferences(arm, p[None]):
        expected = torch.autograd.grad(arm(ids).logits.logsumexp(-1).sum(), ours)
    twin = add_random_adapter(tiny_llama(), attributes).requires_grad_(True)
    theirs = [tensor for layer in adapter_layers(twin).values() for tensor in layer.weights("default")]
    found = torch.autograd.grad(parm_arm(twin, p)(ids).logits.logsumexp(-1).sum(), theirs)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("wrong", [("--size", "huge"), ("--layers", "lower"), ("--pairs", "0"), ("--tokens", "0", "4")])
def test_an_invalid_option_is_refused_by_name(wrong: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["train", *wrong])
    assert result.exit_code == 2
    assert wrong[0] in result.output
