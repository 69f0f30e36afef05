"""evaluation.run: figures that follow from the answers, determinism, guidance, and mismatched models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from armature.algorithms.answer_patterns import is_refusal
from armature.algorithms.lexicon import LexiconScorer
from armature.algorithms.metrics import mean as metrics_mean
from armature.algorithms.metrics import wilson_rate
from armature.contracts.artifacts import ReportMetadata
from armature.contracts.specs import parse_spec
from armature.contracts.specs.evaluation import METRICS
from armature.errors import AdapterBaseMismatch, ContextLengthExceeded, InvalidDataset, InvalidRequest
from armature.modeling.checkpoints.loading import load_model, load_tokenizer
from armature_worker.context.ports import JobCancelled, RecipeResult
from armature_worker.recipes.evaluation import run
from tests.support.recipe_context import as_input
from tests.support.recipe_world import (
    ATTRIBUTES,
    DATA,
    LEXICON,
    World,
    arm_spec,
    evaluation_spec,
    harm_spec,
)
from tests.support.tiny_models import save_tiny_checkpoint, tiny_llama

SENTENCES = ["i hear you.", "that is hard.", "try a rest.", "ask a friend.", "zorble the gate.", "i will not."]
GUIDED = {"arm": "arm", "harm_vector": "vector", "harm_scale": 1.0}


def teach(model: Any, tokenizer: Any) -> None:
    """Overfit the tiny model on answers that the lexicon knows, so that its scores are not all zero."""
    texts = [
        f"{row['prompt']} {sentence}" for row in (*DATA["prompts"], *DATA["harmful_prompts"]) for sentence in SENTENCES
    ]
    rows = [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [2] * (width - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = model(ids, attention_mask=(ids != 2).long(), labels=ids.masked_fill(ids == 2, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("world"))
    model = tiny_llama()
    source = save_tiny_checkpoint(world.folder / "source", model)
    teach(model.train(), load_tokenizer(source))
    model.save_pretrained(source)
    world.import_model(source)
    world.artifacts["vector"] = as_input(world.run(harm_spec()).outputs[0])
    training = {"steps": 40, "batch_size": 6, "learning_rate": 2e-2}
    trained = world.run(arm_spec(harm_vector="vector", harm_scale=1.0, training=training))
    world.artifacts["arm"] = as_input(trained.outputs[0])
    return world


def figures(result: RecipeResult) -> dict[str, Any]:
    metadata = result.outputs[0].metadata
    assert isinstance(metadata, ReportMetadata)
    return metadata.metrics


def read(result: RecipeResult) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = result.outputs[0].path
    assert {path.name for path in folder.iterdir()} == {"report.json", "samples.jsonl"}
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return json.loads((folder / "report.json").read_text()), samples


def of_section(samples: list[dict[str, Any]], section: str) -> Iterator[dict[str, Any]]:
    return (sample for sample in samples if sample["section"] == section)


@pytest.mark.slow
def test_figures_follow_from_the_samples(world: World) -> None:
    result = world.run(evaluation_spec(**GUIDED))
    report, samples = read(result)
    assert report["metrics"] == figures(result)
    assert report["settings"] == parse_spec(evaluation_spec(**GUIDED)).model_dump(mode="json")
    assert report["subject"]["arm"] == world.artifacts["arm"].digest
    scorer = LexiconScorer(LEXICON)
    for sample in samples:
        assert sample["attributes"] == scorer.score(sample["answer"], True).attributes
    attacks = list(of_section(samples, "harmful_prompts"))
    assert len(attacks) == len(DATA["harmful_prompts"]) * (len(ATTRIBUTES) + 1)
    rates = {}
    for name, by in report["harmful_prompts"]["by_preference"].items():
        asked = {"empathy": 0.5, "helpfulness": 0.5} if name == "uniform" else {name: 1.0}
        harmful = [sample["harmful"] for sample in attacks if sample["preference"] == asked]
        expected = wilson_rate(sum(harmful), len(harmful))
        assert (by["asr"]["value"], by["asr"]["high"]) == (expected.value, expected.high)
        rates[name] = expected.value
    assert report["metrics"]["asr"] == max(rates.values()) == rates[report["metrics"]["asr_worst_preference"]]
    control = list(of_section(samples, "prompts"))
    assert len(control) == 4 * len(DATA["prompts"])
    mip = sum(sum(s["preference"][a] * s["attributes"][a] for a in ATTRIBUTES) for s in control) / len(control)
    assert report["metrics"]["mip"] == pytest.approx(mip)
    assert report["metrics"]["degenerate"] == sum(s["degenerate"] for s in control) / len(control)
    assert len(report["metrics"]["control_matrix"]) == len(ATTRIBUTES)
    numbers = {name for name, value in report["metrics"].items() if isinstance(value, int | float)}
    assert numbers == {name for role, names in METRICS.items() if role in report for name in names}


@pytest.mark.slow
def test_guidance_moves_the_answers_towards_what_is_asked(world: World) -> None:
    free = {"guidance": {"guidance_weight": 3.0, "safe_set_delta": None}, "prompts_per_preference": 3}
    data = {"prompts": DATA["prompts"]}
    guided = figures(world.run(evaluation_spec(**GUIDED, **free), data))
    plain = figures(world.run(evaluation_spec(harm_vector="vector", harm_scale=1.0, **free), data))
    assert guided["one_hot_gain"] > 0.1
    assert guided["mip"] - guided["mip_shuffled"] > 0.05
    assert plain["kl_to_safe"] == 0 < guided["kl_to_safe"]
    assert guided["nll"] == plain["nll"]


def test_weight_zero_is_the_safe_base(world: World) -> None:
    off = {"guidance": {"guidance_weight": 0.0, "safe_set_delta": 3.0}, "harmful_prompts": None}
    _, guided = read(world.run(evaluation_spec(**GUIDED, **off)))
    _, plain = read(world.run(evaluation_spec(harm_vector="vector", harm_scale=1.0, **off)))
    assert [sample["answer"] for sample in guided] == [sample["answer"] for sample in plain]


def test_nll_is_the_models_own_loss(world: World) -> None:
    base = world.artifacts["base"].path
    model, tokenizer, nats, tokens = load_model(base), load_tokenizer(base), 0.0, 0
    for row in DATA["benign_pairs"]:
        prompt = tokenizer(row["prompt"]).input_ids
        answer = [*tokenizer(row["completion"]).input_ids, tokenizer.eos_token_id]
        ids = torch.tensor([prompt + answer])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        nats += model(ids, labels=labels).loss.item() * len(answer)
        tokens += len(answer)
    result = world.run(evaluation_spec(harmful_prompts=None, prompts=None))
    assert figures(result) == {"nll": pytest.approx(nats / tokens, rel=1e-5)}
    assert read(result)[1] == []


def test_same_seed_same_report_and_batches_do_not_matter(world: World) -> None:
    def samples(**changes: Any) -> list[dict[str, Any]]:
        rows = read(world.run(evaluation_spec(**GUIDED, **changes)))[1]
        return [{key: row[key] for key in ("prompt", "preference", "answer")} for row in rows]

    sampling = {"max_tokens": 12, "temperature": 1.0}
    first = samples(sampling=sampling)
    assert first == samples(sampling=sampling) == samples(sampling=sampling | {"batch_size": 3})
    assert first != samples(sampling=sampling, seed=4)


def test_an_unguided_model_is_attacked_once(world: World) -> None:
    report, samples = read(world.run(evaluation_spec(prompts=None, benign_pairs=None)))
    assert list(report["harmful_prompts"]["by_preference"]) == ["unguided"]
    assert {sample["preference"] for sample in samples} == {None}
    assert report["subject"]["arm"] is None
    assert "mip" not in report["metrics"]


def test_without_a_lexicon_phrases_tell_refusals_of_harmful_and_of_benign_prompts(world: World) -> None:
    data = {"benign_prompts": DATA["prompts"]}
    spec = evaluation_spec(lexicon=None, prompts=None, benign_prompts="d", **GUIDED)
    result = world.run(spec, data)
    report, samples = read(result)
    shown = {name: list(of_section(samples, name)) for name in ("harmful_prompts", "benign_prompts")}
    assert len(shown["benign_prompts"]) == len(DATA["prompts"]) * (len(ATTRIBUTES) + 1)
    for sample in (*shown["harmful_prompts"], *shown["benign_prompts"]):
        assert sample["refusal"] == is_refusal(sample["answer"]) != sample["harmful"]
    worst = max(figures["value"] for figures in report["benign_prompts"]["by_preference"].values())
    assert report["metrics"]["over_refusal"] == worst
    assert worst == max(
        metrics_mean(s["refusal"] for s in shown["benign_prompts"] if s["preference"] == asked)
        for asked in ({"empathy": 0.5, "helpfulness": 0.5}, {"empathy": 1.0}, {"helpfulness": 1.0})
    )
    numbers = {name for name, value in report["metrics"].items() if isinstance(value, int | float)}
    assert numbers == {name for role, names in METRICS.items() if role in report for name in names}


def test_the_safe_set_is_certified_by_the_openings_it_must_keep_out(world: World) -> None:
    """The figure is the smallest gap; at that delta the safe set has no opening, beyond it one."""
    openings = [
        {"prompt": f"how to zorble gate {n}?", "completion": text}
        for n in range(150)
        for text in ("zorble the gate", "take the gate")
    ]
    only = {"harmful_prompts": None, "benign_pairs": None, "prompts": None, "harmful_openings": "d"}
    summary = figures(world.run(evaluation_spec(**only), {"harmful_openings": openings}))
    assert summary["safe_set_delta"] == pytest.approx(summary["critical_gap"] - 0.01)
    assert set(summary) == set(METRICS["harmful_openings"])
    few = figures(world.run(evaluation_spec(**only), {"harmful_openings": openings[:6]}))
    assert few["safe_set_delta"] is None
    assert few["critical_gap"] >= summary["critical_gap"]


def test_a_grid_without_the_centroid_has_no_control_matrix(world: World) -> None:
    report, _ = read(world.run(evaluation_spec(preferences=2, harmful_prompts=None)))
    assert "control_matrix" not in report["metrics"]
    assert "mip" in report["metrics"]


@pytest.mark.parametrize("changes", [{"harm_scale": 2.0}, {"harm_vector": None}])
def test_an_arm_of_another_backbone_is_refused(changes: dict[str, Any], world: World) -> None:
    with pytest.raises(AdapterBaseMismatch) as caught:
        world.run(evaluation_spec(**(GUIDED | changes)))
    assert caught.value.param == "spec.arm"


def test_an_arm_whose_base_has_other_weights_is_caught_by_its_canary(world: World) -> None:
    """Same metadata, other bytes: what a digest can not see, the canary does."""
    swapped = save_tiny_checkpoint(world.folder / "swapped", tiny_llama(5))
    world.artifacts["swapped"] = replace(world.artifacts["base"], path=swapped)
    with pytest.raises(AdapterBaseMismatch, match="nats away"):
        world.run(evaluation_spec(**(GUIDED | {"base_model": "swapped"})))


def test_what_does_not_fit_is_named(world: World) -> None:
    with pytest.raises(InvalidDataset, match="helpfulness") as lexicon:
        world.run(evaluation_spec(), {"lexicon": [LEXICON | {"attributes": {"empathy": ["i hear you"]}}]})
    assert lexicon.value.param == "spec.lexicon"
    with pytest.raises(ContextLengthExceeded) as long:
        world.run(evaluation_spec(), {"prompts": [{"prompt": "x" * 250}]})
    assert long.value.param == "spec.prompts"
    scores = LEXICON["attributes"] | {"sensitivity": ["careful"]}  # type: ignore[operator]
    with pytest.raises(InvalidRequest, match="sensitivity"):
        world.run(
            evaluation_spec(**GUIDED, attributes=["sensitivity"]), {"lexicon": [LEXICON | {"attributes": scores}]}
        )


def test_cancelling_stops_between_batches(world: World, tmp_path: Path) -> None:
    def cancel(phase: str, step: int) -> None:
        if (phase, step) == ("prompts", 4):
            raise JobCancelled

    spec = evaluation_spec(sampling={"max_tokens": 4, "batch_size": 4})
    context = world.context(spec, DATA, on_progress=cancel)
    with pytest.raises(JobCancelled):
        run(parse_spec(spec), context)
    assert not (context.workdir / "report").exists()
