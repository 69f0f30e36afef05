"""Progress: a percentage that never decreases, and a remaining time that follows from the pace."""

import ast
import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.contracts.specs import SPECS
from armature_worker.recipes import RECIPES
from armature_worker.runtime.progress_meter import ProgressMeter

PHASES = {"load": 10.0, "train": 80.0, "publish": 10.0}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_phases_count_by_their_weight():
    meter = ProgressMeter(PHASES)
    percents = [meter.measure(*at).percent for at in [("load", 1, 2), ("train", 1, 4), ("publish", 0, 1)]]
    assert percents == pytest.approx([5.0, 30.0, 90.0])
    assert meter.measure("publish", 1, 1).percent == pytest.approx(100.0)


def test_a_skipped_phase_counts_as_done():
    meter = ProgressMeter(PHASES)
    assert meter.measure("train", 0, 10).percent == pytest.approx(10.0)
    assert meter.measure("surprise", 9, 10).percent == pytest.approx(10.0)
    assert meter.measure("load", 1, 2).percent == pytest.approx(10.0)


def test_the_time_left_follows_from_the_pace_and_the_weights():
    clock = Clock()
    meter = ProgressMeter(PHASES, clock)
    assert meter.measure("train", 50, 100).eta_seconds is None  # resumed there: no pace is known yet
    clock.now = 20.0
    # 10 steps took 20 s, so 40 more take 80 s; all 100 would take 200 s, and publishing an eighth of that
    assert meter.measure("train", 60, 100).eta_seconds == pytest.approx(80 + 25)


@given(st.lists(st.tuples(st.sampled_from([*PHASES, "other"]), st.integers(0, 5)), max_size=30))
def test_the_percentage_stays_in_bounds_and_never_goes_back(reports):
    meter = ProgressMeter(PHASES)
    percents = [0.0, *(meter.measure(phase, step, 5).percent for phase, step in reports)]
    assert percents == sorted(percents)
    assert percents[-1] <= 100.0 + 1e-9


@pytest.mark.parametrize("kind", sorted(SPECS))
def test_a_recipe_reports_no_phase_that_its_spec_does_not_know(kind):
    recipe = inspect.getmodule(__import__(RECIPES[kind], fromlist=["run"]))
    reported = {
        node.args[0].value
        for node in ast.walk(ast.parse(inspect.getsource(recipe)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "progress"
        if isinstance(node.args[0], ast.Constant)
    }
    assert reported
    assert reported <= SPECS[kind].phases.keys()
