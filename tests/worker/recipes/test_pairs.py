"""pairs.generate: what is written, screened, judged and labelled; resuming; what a training job makes of the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from armature.contracts.datasets import PreferenceRow
from armature.contracts.pairs import PairsMetadata
from armature.contracts.specs import parse_spec
from armature.datasets.row_reader import read_rows
from armature.datasets.scan import scan_rows
from armature.errors import InvalidDataset, InvalidRequest
from armature.settings import EndpointSettings
from armature_worker.context.ports import JobPaused, RecipeResult
from armature_worker.recipes.pairs import run
from tests.support.recipe_world import World
from tests.support.scripted_server import Answer, Request, run_script
from tests.support.taught_models import ANSWERS, NAMES, RUBRICS, prompt_of, save_taught_checkpoints

pytestmark = pytest.mark.slow

DATA = {"prompts": [{"prompt": prompt_of(name)} for name in NAMES]}
JUDGE = {"type": "likelihood_ratio", "base_model": "judge", "min_margin": 0.2}
SAMPLING = {"instruction": "system", "temperature": 0.0, "max_tokens": 40, "batch_size": 8}
SCREEN = {"min_characters": 10, "max_length_ratio": 2.0, "max_similarity": 0.6}
FAMILIES = {"calm": ("we breathe with", "run"), "short": ("can rest a bit", "the long road")}
"""How the taught model answers for and against each attribute."""


def pairs_spec(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "pairs.generate",
        "prompts": "d",
        "attributes": list(RUBRICS),
        "rubrics": RUBRICS,
        "teachers": [{"type": "base_model", "base_model": "teacher"}],
        "judges": [JUDGE],
        "sampling": SAMPLING,
        "screen": SCREEN,
        "held_out_share": 0.25,
        "seed": 3,
    } | changes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("world"))
    folders = {name: world.folder / f"source-{name}" for name in ("teacher", "judge")}
    save_taught_checkpoints(**folders)
    for name, folder in folders.items():
        world.import_model(folder, name)
    return world


def rows_of(result: RecipeResult) -> list[dict[str, Any]]:
    return [json.loads(line) for made in result.datasets for line in made.path.read_text().splitlines()]


def rejected(result: RecipeResult) -> list[dict[str, Any]]:
    lines = (result.outputs[0].path / "rejected.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def metadata(result: RecipeResult) -> PairsMetadata:
    found = result.outputs[0].metadata
    assert isinstance(found, PairsMetadata)
    return found


def test_the_better_answer_is_the_one_written_for_the_attribute(world: World) -> None:
    result = world.run(pairs_spec(), DATA)
    rows = rows_of(result)
    assert len(rows) == len(NAMES) * len(RUBRICS)
    for row in rows:
        (name,) = row["written_for"]
        better, worse = FAMILIES[name]
        label = row["labels"][name]
        assert better in row["responses"][label]
        assert worse in row["responses"][1 - label]
        assert (row["margin"][name] > 0.2) == (label == 0)
        assert (row["margin"][name] < -0.2) == (label == 1)
    assert {row["labels"][row["written_for"][0]] for row in rows} == {0, 1}
    figures = metadata(result)
    assert (figures.rows, figures.held_out_rows) == (6, 2)
    assert figures.independent
    for pairs in figures.attributes.values():
        assert (pairs.written, pairs.kept, pairs.dropped) == (4, 4, {})
        (judge,) = pairs.judges
        assert (judge.asked, judge.agreed, judge.tied, judge.opposed, judge.unparsed) == (4, 4, 0, 0, 0)


def test_the_data_sets_share_no_prompt_and_train_an_arm(world: World) -> None:
    result = world.run(pairs_spec(), DATA)
    training, held_out = (made.path for made in result.datasets)
    assert [made.name for made in result.datasets] == ["pairs", "pairs-held-out"]
    prompts = [{json.loads(line)["prompt"] for line in path.read_text().splitlines()} for path in (training, held_out)]
    assert not prompts[0] & prompts[1]
    with training.open("rb") as file:
        scan = scan_rows(file)
    assert (scan.format, scan.validation.errors, scan.validation.warnings) == ("preference", [], [])
    assert {name: found.labels for name, found in scan.statistics.attributes.items()} == {"calm": 3, "short": 3}
    data = {
        role: [json.loads(line) for line in path.read_text().splitlines()]
        for role, path in (("pairs", training), ("validation_pairs", held_out))
    }
    arm = world.run(
        {
            "kind": "arm.train",
            "base_model": "teacher",
            "pairs": "d",
            "validation_pairs": "d",
            "attributes": list(RUBRICS),
            "training": {"steps": 12, "batch_size": 4, "learning_rate": 5e-3},
            "seed": 3,
        },
        data,
    )
    validation = arm.outputs[0].metadata.validation  # type: ignore[union-attr]
    assert validation is not None
    by_name = {name: point for point in validation.points for name in RUBRICS if point.preference[name] == 1.0}
    assert by_name["calm"].accuracy["calm"] == by_name["short"].accuracy["short"] == 1.0


def test_cross_labels_and_hard_pairs_tell_attributes_apart(world: World) -> None:
    rows = rows_of(world.run(pairs_spec(cross_label=True, hard_pairs_per_prompt=1), DATA))
    crossed = [row for row in rows if len(row["written_for"]) == 1]
    assert all(set(row["labels"]) == set(row["margin"]) == set(RUBRICS) for row in crossed)
    for row in crossed:
        for name, margin in row["margin"].items():
            assert row["labels"][name] == (None if abs(margin) < 0.2 else int(margin < 0))
    hard = [row for row in rows if len(row["written_for"]) == 2]
    assert hard
    for row in hard:
        assert row["written_for"] == ["calm", "short"]
        for name, label in row["labels"].items():
            assert FAMILIES[name][0] in row["responses"][label]
        assert sorted(row["labels"].values()) == [0, 1]


def test_the_seed_decides_and_batches_do_not(world: World) -> None:
    warm = SAMPLING | {"temperature": 0.9}
    first = rows_of(world.run(pairs_spec(sampling=warm), DATA))
    again = rows_of(world.run(pairs_spec(sampling=warm | {"batch_size": 3}), DATA))
    assert [row["responses"] for row in first] == [row["responses"] for row in again]
    assert first != rows_of(world.run(pairs_spec(sampling=warm, seed=4), DATA))


def test_a_pair_that_a_judge_contradicts_is_dropped_and_kept_on_record(world: World) -> None:
    """The rubric of one attribute is the wrong way round for the judge, which reads the second wording."""
    calm = RUBRICS["calm"]
    wrong = {"instructions_for": ["be calm.", "stay loud."], "instructions_against": ["be loud.", "stay calm."]}
    result = world.run(pairs_spec(rubrics=RUBRICS | {"calm": calm | wrong}), {"prompts": DATA["prompts"][:1]})
    assert [row["written_for"] for row in rows_of(result)] == [["short"]]
    (dropped,) = rejected(result)
    assert (dropped["attribute"], dropped["reason"]) == ("calm", "judges")
    assert "we breathe" in dropped["for"]
    assert dropped["margins"][0] < -0.2
    assert metadata(result).attributes["calm"].judges[0].opposed == 1


def test_a_stopped_job_goes_on_where_it_was(world: World, tmp_path: Path) -> None:
    spec = pairs_spec(checkpoint_every=100, sampling=SAMPLING | {"batch_size": 4})

    def stop(phase: str, step: int) -> None:
        if (phase, step) == ("judge", 4):
            raise JobPaused

    ports = {"checkpoints": tmp_path / "checkpoints"}
    with pytest.raises(JobPaused):
        run(parse_spec(spec), world.context(spec, DATA, on_progress=stop, **ports))
    context = world.context(spec, DATA, **ports, on_progress=_refuse_below("generate", 16))
    resumed = run(parse_spec(spec), context)
    assert ("info", "resumed after 20 results") in context.messages
    assert rows_of(resumed) == rows_of(world.run(spec, DATA))


def _refuse_below(phase: str, least: int) -> Callable[[str, int], None]:
    def check(reported: str, step: int) -> None:
        assert reported != phase or step >= least, "an answer was written again"

    return check


def test_a_judge_that_writes_answers_is_told_apart(world: World) -> None:
    spec = pairs_spec(judges=[JUDGE | {"base_model": "teacher"}])
    context = world.context(spec, DATA)
    figures = metadata(run(parse_spec(spec), context))
    assert not figures.independent
    assert any("not independent" in text for level, text in context.messages if level == "warn")


def test_human_labels_are_compared(world: World) -> None:
    """People agree with the judge in all but one pair, and one pair they call a tie."""
    known = rows_of(world.run(pairs_spec(), DATA))
    calm = [row for row in known if row["written_for"] == ["calm"]]
    labels = [row["labels"]["calm"] for row in calm]
    labels[0], labels[1] = 1 - labels[0], None
    human = [
        {"prompt": row["prompt"], "responses": row["responses"][::-1], "labels": {"calm": flipped}}
        for row, label in zip(calm, labels, strict=True)
        for flipped in [None if label is None else 1 - label]
    ]
    result = world.run(pairs_spec(human_labels="d"), DATA | {"human_labels": human})
    found = metadata(result).attributes["calm"]
    judge = found.judges[0]
    assert (found.kappa_pairs, judge.kappa_pairs) == (4, 4)
    truth = [1 - row["labels"]["calm"] for row in calm]
    given = [row["labels"]["calm"] for row in human]
    chance = sum(given.count(v) * truth.count(v) for v in (0, 1)) / 16
    assert found.kappa == judge.kappa == pytest.approx((2 / 4 - chance) / (1 - chance))
    assert metadata(result).attributes["short"].kappa is None


# --- endpoints --------------------------------------------------------------------------------------------------------


def chat(text: str, reason: str = "stop") -> Answer:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return Answer(body=json.dumps({"choices": [choice]}).encode())


def remote_writer(request: Request) -> Answer:
    body = json.loads(request.body)
    system, prompt = (message["content"] for message in body["messages"])
    return chat(f"Sure! Here is my answer: {ANSWERS[system].format(prompt.split()[0])}")


def remote_judge(request: Request) -> Answer:
    """Prefers calm answers, has no verdict on ann and, being biased, names the first answer for eve."""
    question = json.loads(request.body)["messages"][0]["content"]
    first = question.index("<answer_1>")
    if "ann" in question:
        return chat("Both are fine.")
    if "eve" in question:
        return chat("Verdict: 1")
    calm = question.find("we breathe", first)
    return chat(f"It is calmer. Verdict: {1 if calm < question.index('<answer_2>') else 2}")


def endpoints(url: str) -> dict[str, EndpointSettings]:
    return {"lab": EndpointSettings.model_validate({"url": url, "api_key": "sk-secret", "concurrency": 1})}


def test_endpoints_write_and_judge_and_no_key_is_kept(world: World) -> None:
    def serve(request: Request) -> Answer:
        return remote_writer(request) if json.loads(request.body)["model"] == "writer" else remote_judge(request)

    spec = pairs_spec(
        attributes=["calm"],
        teachers=[{"type": "endpoint", "endpoint": "lab", "model": "writer"}],
        judges=[{"type": "endpoint", "endpoint": "lab", "model": "grader"}],
    )
    with run_script([serve]) as server:
        result = world.run(spec, DATA, endpoints=endpoints(server.url))
    assert {row["prompt"].split()[0] for row in rows_of(result)} == set(NAMES) - {"ann", "eve"}
    assert all("Sure" not in text for row in rows_of(result) for text in row["responses"])
    (judge,) = metadata(result).attributes["calm"].judges
    assert (judge.asked, judge.agreed, judge.tied, judge.unparsed) == (4, 2, 1, 1)
    assert judge.orders_agreed == pytest.approx(2 / 3)
    assert len(server.requests) == 8 + 8
    assert all(request.headers["authorization"] == "Bearer sk-secret" for request in server.requests)
    written = [path.read_text() for path in result.outputs[0].path.iterdir()]
    assert not any("sk-secret" in text for text in written)


@pytest.mark.parametrize("place", ["user", "system"])
def test_an_endpoint_reads_the_instruction_where_the_spec_says(place: str, world: World) -> None:
    spec = pairs_spec(
        attributes=["calm"],
        teachers=[{"type": "endpoint", "endpoint": "lab", "model": "writer"}],
        judges=[],
        sampling=SAMPLING | {"instruction": place},
    )
    conversation = [{"role": "user", "content": "hi."}, {"role": "assistant", "content": "hello."}]
    prompt = [*conversation, {"role": "user", "content": "ann is sad."}]
    answers = [chat("We breathe slowly now."), chat("Run away from here!")]
    with run_script(answers) as server:
        world.run(spec, {"prompts": [{"prompt": prompt}]}, endpoints=endpoints(server.url))
    for_it, against_it = (json.loads(request.body)["messages"] for request in server.requests)
    if place == "system":
        assert for_it == [{"role": "system", "content": "be calm."}, *prompt]
        assert against_it == [{"role": "system", "content": "be loud."}, *prompt]
    else:
        assert for_it == [*conversation, {"role": "user", "content": "ann is sad.\n\n(be calm.)"}]
        assert against_it == [*conversation, {"role": "user", "content": "ann is sad.\n\n(be loud.)"}]


def test_teachers_take_turns_and_both_sides_have_one_teacher(world: World) -> None:
    teachers = [*pairs_spec()["teachers"], {"type": "endpoint", "endpoint": "lab", "model": "writer"}]
    with run_script([remote_writer]) as server:
        result = world.run(pairs_spec(teachers=teachers, judges=[]), DATA, endpoints=endpoints(server.url))
    by_teacher = [row["teachers"] for row in rows_of(result)]
    assert by_teacher.count(["teacher"]) == by_teacher.count(["writer"]) == 4
    assert len(server.requests) == 8


def test_an_endpoint_that_the_worker_lacks_is_named(world: World) -> None:
    spec = pairs_spec(teachers=[{"type": "endpoint", "endpoint": "lab", "model": "m"}])
    with pytest.raises(InvalidRequest, match="no endpoint 'lab'") as caught:
        world.run(spec, DATA)
    assert caught.value.param == "spec.teachers.0.endpoint"


def test_no_pair_left_is_an_error_with_the_reasons(world: World) -> None:
    with pytest.raises(InvalidDataset, match="8 short"):
        world.run(pairs_spec(screen=SCREEN | {"min_characters": 1000}), DATA)


def test_rows_are_read_as_preference_rows(world: World) -> None:
    result = world.run(pairs_spec(), DATA)
    with result.datasets[0].path.open("rb") as file:
        rows = list(read_rows(file, PreferenceRow, None))
    assert {name for row in rows for name in row.labels} == set(RUBRICS)
