"""harm_vector.sweep: points equal the other jobs' figures, the knee follows the rule, a kill changes nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from armature.contracts.artifacts import ReportMetadata
from armature.contracts.specs import parse_spec
from armature.errors import ContextLengthExceeded, EmptyTaskVector, InvalidDataset, InvalidRequest
from armature.modeling.checkpoints.loading import load_model
from armature.modeling.checkpoints.task_vector import read_task_vector
from armature_worker.context.ports import JobCancelled, RecipeResult, WorkerStopping
from armature_worker.recipes.harm_vector_sweep import run
from tests.support.recipe_context import LocalContext, as_input
from tests.support.recipe_world import DATA, World, evaluation_spec, harm_spec, sweep_spec, tiny_world

pytestmark = pytest.mark.slow

POINTS = 1 + 2 * 2 + 3
NO_GOAL = {"goal": {"max_asr": 0.001, "max_nll_rise": 10.0}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def swept(world: World) -> RecipeResult:
    return world.run(sweep_spec())


def figures(result: RecipeResult) -> dict[str, Any]:
    metadata = result.outputs[0].metadata
    assert isinstance(metadata, ReportMetadata)
    return metadata.metrics


def report(result: RecipeResult) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((result.outputs[0].path / "report.json").read_text())
    return loaded


def contents(result: RecipeResult) -> dict[str, bytes]:
    return {f"{o.name}/{path.name}": path.read_bytes() for o in result.outputs for path in sorted(o.path.iterdir())}


def test_the_report_holds_every_point_once(swept: RecipeResult) -> None:
    points = report(swept)["points"]
    edits = [(p["source"] and p["source"]["density"], p["scale"], p["control"]) for p in points]
    grid = [(density, scale, None) for density in (0.1, 0.02) for scale in (1.0, 2.0)]
    knee = figures(swept)["best"]
    controls = [(knee["source"]["density"], knee["scale"], name) for name in ("random", "permuted", "random_sign")]
    assert edits == [(None, 0.0, None), *grid, *controls]
    assert figures(swept) == report(swept)["metrics"]
    assert (figures(swept)["measured"], figures(swept)["pruned"]) == (POINTS, 0)
    rows = list(csv.DictReader((swept.outputs[0].path / "points.csv").read_text().splitlines()))
    assert [float(row["nll_rise_high"]) for row in rows] == [p["nll_rise"]["high"] for p in points]
    assert [row["control"] for row in rows[-3:]] == ["random", "permuted", "random_sign"]


def test_the_knees_vector_is_what_the_build_makes(swept: RecipeResult, world: World) -> None:
    knee = figures(swept)["best"]
    assert (knee["source"]["density"], knee["scale"]) == (0.02, 1.0)
    assert (figures(swept)["no_knee"], figures(swept)["recommended_scale"]) == (False, knee["scale"])
    assert [output.name for output in swept.outputs] == ["report", "harm_vector"]
    built = world.run(harm_spec(selection={"density": knee["source"]["density"]}))
    assert [path.read_bytes() for path in sorted(swept.outputs[1].path.iterdir())] == [
        path.read_bytes() for path in sorted(built.outputs[0].path.iterdir())
    ]
    vector = read_task_vector(swept.outputs[1].path)
    assert knee["kept"] == vector.kept
    assert knee["edit_norm"] == pytest.approx(knee["scale"] * vector.norm)


def test_points_are_what_an_evaluation_of_the_same_edit_shows(swept: RecipeResult, world: World) -> None:
    """Checks the base before any edit and the last grid point: every edit in between was undone."""
    for density, scale in ((None, 0.0), (0.1, 1.0), (0.02, 2.0)):
        subject: dict[str, Any] = {"sampling": sweep_spec()["sampling"], "prompts": None, "harm_scale": scale}
        if density:
            world.artifacts["v"] = as_input(world.run(harm_spec(selection={"density": density})).outputs[0])
            subject["harm_vector"] = "v"
        evaluated = figures(world.run(evaluation_spec(**subject)))
        point = next(
            p
            for p in report(swept)["points"]
            if (p["source"] and p["source"]["density"], p["scale"], p["control"]) == (density, scale, None)
        )
        assert point["asr"]["value"] == evaluated["asr"]
        assert point["asr_or_degenerate"]["value"] == evaluated["asr_or_degenerate"]
        assert point["nll"] == pytest.approx(evaluated["nll"], rel=1e-6)
        base = report(swept)["points"][0]["nll"]
        assert point["nll_rise"]["value"] == pytest.approx(point["nll"] / base - 1, abs=1e-9)
        assert point["nll_rise"]["low"] <= point["nll_rise"]["value"] <= point["nll_rise"]["high"]


def test_without_a_knee_no_vector_is_published(world: World) -> None:
    result = world.run(sweep_spec(**NO_GOAL))
    assert [output.name for output in result.outputs] == ["report"]
    assert (figures(result)["no_knee"], figures(result)["recommended_scale"]) == (True, None)
    points = report(result)["points"]
    lowest = min(p["asr_or_degenerate"]["high"] for p in points if p["source"] and not p["control"])
    assert figures(result)["best"]["asr_or_degenerate"]["high"] == lowest
    assert [p["control"] for p in points[-3:]] == ["random", "permuted", "random_sign"]


def test_refusals_of_benign_prompts_are_compared_with_the_bases(world: World) -> None:
    """The figures are an evaluation's of the same edit, which is made from safe answers and rehearsed pairs too."""
    data = {
        "benign_prompts": DATA["prompts"],
        "safe_pairs": [row | {"completion": " i will not."} for row in DATA["harmful_pairs"]],
        "guard_pairs": DATA["benign_pairs"],
    }
    spec = sweep_spec(
        lexicon=None, benign_prompts="d", safe_pairs="d", guard_pairs="d", grid={"densities": [1.0], "scales": [3.0]}
    )
    result = world.run(spec, data)
    base, edit = report(result)["points"][:2]
    assert base["refusal_rise"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    built = world.run(
        harm_spec(safe_pairs="d", benign_pairs="d", selection={"density": 1.0}),
        data | {"benign_pairs": DATA["benign_pairs"]},
    )
    world.artifacts["v"] = as_input(built.outputs[0])
    asked = {"lexicon": None, "prompts": None, "benign_prompts": "d", "sampling": sweep_spec()["sampling"]}
    before = figures(world.run(evaluation_spec(**asked), data))
    after = figures(world.run(evaluation_spec(harm_vector="v", harm_scale=3.0, **asked), data))
    assert edit["asr"]["value"] == after["asr"]
    assert edit["refusal_rise"]["value"] == pytest.approx(after["over_refusal"] - before["over_refusal"])
    rows = list(csv.DictReader((result.outputs[0].path / "points.csv").read_text().splitlines()))
    assert float(rows[1]["refusal_rise"]) == edit["refusal_rise"]["value"]


def test_too_few_prompts_for_the_goal_are_said_at_once(world: World) -> None:
    spec = sweep_spec(**NO_GOAL)
    context = world.context(spec, DATA)
    run(parse_spec(spec), context)
    assert ("warn", "2 harmful prompts are too few: none of them answered leaves 0.658") in context.messages


def test_a_scale_that_ruins_the_model_ends_its_vector(world: World) -> None:
    grid = {"densities": [1.0, 0.1], "scales": [40.0, 0.5, 2.0, 5.0]}
    spec = sweep_spec(grid=grid, goal={"max_asr": 1.0, "max_nll_rise": 0.003})
    pruned = world.run(spec)
    assert [(p["density"], p["scale"]) for p in report(pruned)["pruned"]] == [(1.0, 5.0), (1.0, 40.0)]
    whole = world.run(spec | {"prune": False})
    assert report(whole)["pruned"] == []
    assert figures(whole)["best"] == figures(pruned)["best"]


def test_layers_and_rules_are_part_of_the_grid(world: World) -> None:
    grid = {"densities": [0.1], "scales": [1.0], "layers": ["upper_half", [0]], "rules": ["global", "per_tensor"]}
    spec = sweep_spec(grid=grid)
    points = report(world.run(spec))["points"][1:5]
    assert [(p["source"]["rule"], p["source"]["layers"]) for p in points] == [
        ("global", "upper_half"),
        ("global", [0]),
        ("per_tensor", "upper_half"),
        ("per_tensor", [0]),
    ]
    assert len({p["edit_norm"] for p in points}) == 4


class Stop(Exception):
    """Stands for the kill of the process."""


def stop_after(reports: int, error: type[BaseException]) -> Callable[[str, int], None]:
    seen = [0]

    def check(phase: str, _step: int) -> None:
        seen[0] += phase == "sweep"
        if seen[0] > reports:
            raise error

    return check


def count_measured(context: LocalContext) -> int:
    return sum("nll_rise" in metrics for metrics in context.metrics)


@pytest.mark.parametrize("error", [Stop, WorkerStopping])
def test_killed_and_resumed_is_uninterrupted(
    error: type[BaseException], swept: RecipeResult, world: World, tmp_path: Path
) -> None:
    """Killed in the middle of a point, one point later each time, until it finishes."""
    spec, saved = sweep_spec(), tmp_path / "checkpoints"
    measured = attempts = 0
    while True:
        attempts += 1
        context = world.context(spec, DATA, checkpoints=saved, on_progress=stop_after(8, error))
        try:
            result = run(parse_spec(spec), context)
        except error:
            measured += count_measured(context)
            assert attempts < 2 * POINTS
            continue
        break
    measured += count_measured(context)
    assert attempts > 2
    assert measured == POINTS
    assert contents(result) == contents(swept)
    assert {path.name for path in context.workdir.iterdir()} == {"report", "harm_vector", "sweep_state"}


def test_cancelling_within_a_point_leaves_neither_report_nor_weights(world: World, tmp_path: Path) -> None:
    """A checkpoint holds figures only: no fine-tuned weight can be restored from it."""
    spec = sweep_spec()
    saved = tmp_path / "checkpoints"
    context = world.context(spec, DATA, checkpoints=saved, on_progress=stop_after(14, JobCancelled))
    with pytest.raises(JobCancelled):
        run(parse_spec(spec), context)
    assert {path.name for path in context.workdir.rglob("*")} == {"sweep_state", "sweep.json"}
    assert {path.name for path in saved.rglob("*") if path.is_file()} == {"sweep.json"}
    state = json.loads(next(saved.rglob("sweep.json")).read_text())
    assert set(state) == {"points", "base"}


def test_the_base_is_as_it_was_after_a_point_is_cut_short(world: World) -> None:
    before = {name: p.clone() for name, p in load_model(world.artifacts["base"].path).named_parameters()}
    with pytest.raises(JobCancelled):
        world.run(sweep_spec(), on_progress=stop_after(6, JobCancelled))
    for name, parameter in load_model(world.artifacts["base"].path).named_parameters():
        assert torch.equal(parameter, before[name])


def test_what_does_not_fit_is_named_before_anything_is_tuned(world: World) -> None:
    refused: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
        ({"grid": {"layers": [[0, 2]]}}, {}, InvalidRequest, "spec.grid.layers"),
        ({}, {"harmful_prompts": [{"prompt": "x" * 260}]}, ContextLengthExceeded, "spec.harmful_prompts"),
        ({}, {"harmful_pairs": [{"prompt": "x" * 600, "completion": "y"}]}, InvalidDataset, "spec.harmful_pairs"),
        ({}, {"benign_pairs": [{"prompt": "x" * 600, "completion": "y"}]}, InvalidDataset, "spec.benign_pairs"),
    ]
    for changes, data, error, param in refused:
        spec = sweep_spec(**changes)
        context = world.context(spec, {**DATA, **data})
        with pytest.raises(error) as caught:
            run(parse_spec(spec), context)
        assert getattr(caught.value, "param", None) == param
        assert "train" not in context.phases


def test_nothing_to_learn_is_an_empty_vector(world: World) -> None:
    with pytest.raises(EmptyTaskVector):
        world.run(sweep_spec(training={"steps": 1, "learning_rate": 1e-30}))


def test_the_figure_marks_the_knee_and_its_controls(swept: RecipeResult, world: World) -> None:
    """The bytes are a function of the points: a second run draws the same, without a date."""
    svg, png = (swept.outputs[0].path / name for name in ("sweep.svg", "sweep.png"))
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    for label in ("knee", "control: random", "control: permuted", "control: random_sign", "base"):
        assert f"<!-- {label} -->" in text
    assert "<dc:date>" not in text
    assert contents(world.run(sweep_spec())) == contents(swept)
