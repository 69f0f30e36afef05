"""``python -m benchmarks decode``: the report's keys, paired ratios, and rivals that compute the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from typer.testing import CliRunner

from armature.inference.lean.linears import Linear
from armature.inference.lean.weights import LeanWeights
from armature.modeling.adapters.peft_pblora import preferences
from benchmarks.commands import app
from benchmarks.decode_turns import measure
from benchmarks.pairing import ratio, spread, take_turns
from benchmarks.plan import Plan
from benchmarks.rivals import generate_steps, merged_arm, parm_arm
from benchmarks.roofline import Limits, product_steps, step_pieces, step_rows
from benchmarks.shapes import adapt, random_model
from tests.support.adapters import add_random_adapter
from tests.support.tiny_models import tiny_llama

FIGURES = {
    "twin_over_plain",
    "late_split_over_plain",
    "guarded_over_plain",
    "hf_generate_over_plain",
    "twin_over_hf_generate",
    "late_split_over_hf_generate",
    "speedup_vs_two_models",
    "speedup_vs_parm_layer",
}
ATTRIBUTES = ["empathy", "truthfulness", "helpfulness"]


@pytest.mark.slow
def test_the_report_has_every_figure_for_every_batch() -> None:
    arguments = "decode --json --size tiny --batch 1 --batch 3 --rounds 2 --steps 2"
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert set(report) == {"machine", "model", "batch", "mixed64_over_one"}
    assert report["model"]["parameters"] == 127_296
    assert set(report["batch"]) == {"1", "3"}
    for figures in report["batch"].values():
        quartiles, limit, products = (figures.pop(key) for key in ("quartiles", "limit", "products"))
        assert set(products) == set(limit)
        for shares in (limit, products):
            assert min(shares[f"{name}_share"] for name in ("plain", "twin", "late_split", "guarded")) > 0
        costs = [limit[f"{name}_over_plain"] for name in ("late_split", "twin", "guarded")]
        assert [1, *costs, 2] == sorted([1, *costs, 2])
        assert set(figures) == set(quartiles) == FIGURES
        assert all(low <= figures[name] <= high for name, (low, high) in quartiles.items())
        assert min(figures.values()) > 0


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation makes, by dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = dict[torch.dtype, int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and record the sizes of its results."""
        result = func(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)):
            self.numbers[tensor.dtype] = max(self.numbers.get(tensor.dtype, 0), tensor.numel())
        return result


def test_a_7b_model_is_made_in_bfloat16_and_adapted_in_place() -> None:
    with Largest() as largest:
        model = random_model("7b", "meta", torch.bfloat16)
    assert model.num_parameters() == 7_241_732_096
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert largest.numbers[torch.bfloat16] == 32_000 * 4096
    assert largest.numbers[torch.float32] < 1000
    adapted = adapt(model, "upper_half", "attention_and_mlp")
    assert {id(tensor) for tensor in model.parameters()} < {id(tensor) for tensor in adapted.parameters()}


@pytest.mark.parametrize("wrong", [("--size", "huge"), ("--dtype", "int8"), ("--batch", "0"), ("--rounds", "none")])
def test_an_invalid_option_is_refused_by_name(wrong: tuple[str, str]) -> None:
    result = CliRunner().invoke(app, ["decode", *wrong])
    assert result.exit_code == 2
    assert wrong[0] in result.output


@pytest.mark.parametrize("benchmark", ["decode", "train", "serve"])
def test_a_missing_gpu_is_refused_before_any_work(benchmark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(app, [benchmark, "--device", "cuda", "--size", "7b"])
    assert result.exit_code == 2
    assert "--device" in result.output


@pytest.mark.slow
@pytest.mark.process
def test_two_checkouts_are_asked_in_turns() -> None:
    root = Path(__file__).parents[2]
    arguments = f"decode-turns --other {root} --json --size tiny --batch 2 --rounds 2 --steps 2"
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 0, result.output
    engines = json.loads(result.stdout)["batch"]["2"]
    assert set(engines) == {"plain", "twin", "late_split", "guarded"}
    for figures in engines.values():
        low, high = figures["quartiles"]
        assert 0 < low <= figures["here_over_there"] <= high
        assert min(figures["seconds"].values()) > 0


@pytest.mark.slow
@pytest.mark.process
def test_a_folder_without_the_product_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=str(tmp_path)):
        measure(Plan("tiny", "float32", "cpu", "attention", (1,), 1, 2), tmp_path)


def test_the_floor_is_the_slower_of_reading_and_multiplying() -> None:
    limits = Limits(flops=100.0, bandwidth=10.0, itemsize=2)
    assert limits.floor([(50, 1)]) == 10.0  # 100 bytes
    assert limits.floor([(50, 20)]) == 20.0  # 2000 operations
    assert limits.floor([(50, 1), (50, 20)]) == 30.0
    pieces = {name: step_pieces(tiny_llama(), rows) for name, rows in step_rows(batch=4).items()}
    work = {name: sum(weights * rows for weights, rows in parts) for name, parts in pieces.items()}
    assert work["plain"] < work["late_split"] < work["twin"] < work["guarded"] == 2 * work["plain"]


@pytest.mark.parametrize("name", ["plain", "twin", "late_split", "guarded"])
def test_a_step_has_all_of_its_products(name: str) -> None:
    """The multiplications of a step match the pieces that its limit is computed from."""
    model, rows = tiny_llama(layers=4), step_rows(batch=4)[name]
    expected = 2 * sum(weights * count for weights, count in step_pieces(model, rows))
    norms = 2 * 4 * model.config.hidden_size * (rows.lower + rows.upper)
    base, flops = LeanWeights(model), []
    base.layers = [replace(layer, products=tuple(map(count_into(flops), layer.products))) for layer in base.layers]
    base.head = count_into(flops)(base.head)
    assert len(product_steps(base, rows, steps=1)) == 1
    assert sum(flops) == expected - norms


def count_into(flops: list[int]) -> Callable[[Linear], Linear]:
    """Wrap a product so that each call appends its operations to ``flops``."""

    def counted(product: Linear) -> Linear:
        def multiply(x: torch.Tensor) -> torch.Tensor:
            y = product(x)
            flops.append(2 * x.numel() * y.shape[-1])
            return y

        return multiply

    return counted


def test_ratios_are_taken_within_a_round() -> None:
    turns = {"fast": iter([9.0, 1.0, 10.0, 2.0]), "slow": iter([9.0, 3.0, 20.0, 8.0])}
    times = take_turns({name: lambda turn=turn: [next(turn)] for name, turn in turns.items()}, rounds=3)
    assert times == {"fast": [1.0, 10.0, 2.0], "slow": [3.0, 20.0, 8.0]}  # the first turn warms up
    assert ratio(times, "slow", "fast") == 3.0  # of 3, 2 and 4
    assert spread(times, "slow", "fast") == [2.5, 3.5]


@pytest.mark.parametrize("rival", [merged_arm, parm_arm])
def test_a_rival_computes_the_same_logits(rival: Callable[[PeftModel, torch.Tensor], PreTrainedModel]) -> None:
    preference = torch.tensor([0.2, 0.3, 0.5])
    ids = torch.tensor([[5, 6, 7, 8]])
    ours = add_random_adapter(tiny_llama(seed=3), ATTRIBUTES)
    with torch.no_grad(), preferences(ours, preference[None]):
        expected = ours(ids).logits
    theirs = rival(add_random_adapter(tiny_llama(seed=3), ATTRIBUTES), preference)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_generate_is_timed_between_tokens() -> None:
    prompts = torch.tensor([[5, 6], [7, 8]])
    assert len(generate_steps(tiny_llama(), prompts, 5)) == 5
    guided = generate_steps(tiny_llama(), prompts, 5, arm=tiny_llama(seed=1))
    assert len(guided) == 5
    assert min(guided) > 0
