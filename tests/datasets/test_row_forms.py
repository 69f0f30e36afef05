"""TRL's and Armature's forms of rows: detection, conversion, and texts that stay whole."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from armature.contracts.datasets import (
    MAX_ATTRIBUTES,
    Lexicon,
    PreferenceRow,
    PromptCompletionRow,
    PromptRow,
    Row,
)
from armature.datasets.answer_pairs import AnswerPairing
from armature.datasets.forms import detect_form
from armature.datasets.labels import labels_from_scores
from armature.datasets.row_reader import read_rows
from armature.errors import InvalidDataset

USER, REPLY = {"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "yes"}
OTHER = {"role": "assistant", "content": "no"}
SYSTEM = {"role": "system", "content": "Be brief."}


def lines(*rows: Any) -> io.BytesIO:
    return io.BytesIO("".join(json.dumps(row) + "\n" for row in rows).encode())


def read(model: type[Row], *rows: Any, attribute: str | None = None) -> list[dict[str, Any]]:
    return [row.model_dump(mode="json") for row in read_rows(lines(*rows), model, attribute)]


PAIR = {"prompt": "Is it?", "responses": ["yes", "no"], "labels": {"overall": 0}}
JUDGED = {**PAIR, "labels": {"wit": 1, "care": None}}
DIALOGUE_PAIR = {**PAIR, "prompt": [USER]}
FORMS: list[tuple[str, dict[str, Any], type[Row], dict[str, Any]]] = [
    ("prompt", {"prompt": "Is it?"}, PromptRow, {"prompt": "Is it?"}),
    ("prompt", {"prompt": [SYSTEM, USER]}, PromptRow, {"prompt": [SYSTEM, USER]}),
    (
        "prompt_completion",
        {"prompt": "Is it?", "completion": "yes"},
        PromptCompletionRow,
        {"prompt": "Is it?", "completion": "yes"},
    ),
    (
        "prompt_completion",
        {"prompt": [USER], "completion": [REPLY]},
        PromptCompletionRow,
        {"prompt": [USER], "completion": "yes"},
    ),
    (
        "messages",
        {"messages": [SYSTEM, USER, OTHER, USER, REPLY]},
        PromptCompletionRow,
        {"prompt": [SYSTEM, USER, OTHER, USER], "completion": "yes"},
    ),
    ("preference", {"prompt": "Is it?", "chosen": "yes", "rejected": "no"}, PreferenceRow, PAIR),
    ("preference", {"prompt": [USER], "chosen": [REPLY], "rejected": [OTHER]}, PreferenceRow, DIALOGUE_PAIR),
    ("preference", {"chosen": [USER, REPLY], "rejected": [USER, OTHER]}, PreferenceRow, DIALOGUE_PAIR),
    (
        "preference",
        {"chosen": "Human: Is it?\n\nAssistant: no way", "rejected": "Human: Is it?\n\nAssistant: not today"},
        PreferenceRow,
        {
            "prompt": [USER],
            "responses": ["no way", "not today"],
            "labels": {"overall": 0},
        },
    ),
    (
        "preference",
        {"prompt": "Is it?", "chosen": "yes", "rejected": "no", "attribute": "wit"},
        PreferenceRow,
        {**PAIR, "labels": {"wit": 0}},
    ),
    (
        "preference",
        {"prompt": "Is it?", "chosen": "yes", "rejected": "no", "scores": {"wit": [1, 2.5], "care": [3, 3]}},
        PreferenceRow,
        {**PAIR, "labels": {"wit": 1, "care": None}},
    ),
    (
        "preference",
        {**PAIR, "labels": {"wit": 1, "care": None}},
        PreferenceRow,
        {**PAIR, "labels": {"wit": 1, "care": None}},
    ),
    (
        "preference",
        {"prompt": [USER], "responses": [[REPLY], [OTHER]], "scores": {"wit": [2, 1]}},
        PreferenceRow,
        {**DIALOGUE_PAIR, "labels": {"wit": 0}},
    ),
    ("lexicon", {"attributes": {"wit": ["ha *"]}}, Lexicon, {"attributes": {"wit": ["ha *"]}}),
]


@pytest.mark.parametrize(("format", "row", "model", "expected"), FORMS, ids=range(len(FORMS)))
def test_every_form_becomes_the_row_that_jobs_use(
    format: str, row: dict[str, Any], model: type[Row], expected: dict[str, Any]
) -> None:
    assert detect_form(row).format == format
    (found,) = read(model, {**row, "source": "elsewhere"})
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("row", [row for _, row, model, _ in FORMS if model is not Lexicon])
def test_all_rows_have_a_prompt_to_ask(row: dict[str, Any]) -> None:
    assert len(read(PromptRow, row)) == 1


def test_a_choice_without_an_attribute_gets_the_data_sets() -> None:
    silent = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert read(PreferenceRow, silent, attribute="care")[0]["labels"] == {"care": 0}
    assert read(PreferenceRow, {**silent, "attribute": "wit"}, attribute="care")[0]["labels"] == {"wit": 0}


def rated(prompt: str, completion: str, label: bool) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": label}


def test_rated_answers_pair_up_within_their_prompt() -> None:
    rows = [
        rated("a", "good 1", True),
        rated("b", "good 2", True),
        rated("a", "good 3", True),
        rated("a", "bad 1", False),
        rated("b", "bad 2", False),
        rated("c", "alone", False),
    ]
    assert read(PreferenceRow, *rows, attribute="wit") == [
        {"prompt": "a", "responses": ["good 1", "bad 1"], "labels": {"wit": 0}},
        {"prompt": "b", "responses": ["good 2", "bad 2"], "labels": {"wit": 0}},
    ]


def test_scored_answers_pair_up_where_any_attribute_differs() -> None:
    rows = [
        {"prompt": [USER], "completion": [REPLY], "scores": {"wit": 1, "care": 5}},
        {"prompt": [USER], "completion": [OTHER], "scores": {"wit": 2, "care": 5}},
    ]
    (pair,) = read(PreferenceRow, *rows)
    assert pair == {"prompt": [USER], "responses": ["yes", "no"], "labels": {"wit": 1, "care": None}}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=30))
def test_pairing_is_maximal_and_uses_each_answer_once(answers: list[tuple[str, bool]]) -> None:
    pairing = AnswerPairing[int]()
    used: list[int] = []
    for index, (prompt, label) in enumerate(answers):
        partner = pairing.offer(prompt, {"wit": float(label)}, index)
        if partner is not None:
            scores, other = partner
            assert answers[other][0] == prompt
            assert bool(scores["wit"]) == answers[other][1] != label
            used += [other, index]
    assert len(set(used)) == len(used)
    left = [answer for index, answer in enumerate(answers) if index not in used]
    assert len(left) == pairing.waiting
    assert all(len({label for name, label in left if name == prompt}) <= 1 for prompt in "ab")


SCORES = st.dictionaries(st.sampled_from(["wit", "care", "tact"]), st.integers(-3, 3).map(float), max_size=3)


@given(SCORES, SCORES)
def test_labels_from_scores_mirror(first: dict[str, float], second: dict[str, float]) -> None:
    one, other = labels_from_scores(first, second), labels_from_scores(second, first)
    assert one.keys() == other.keys() == first.keys() & second.keys()
    for name, label in one.items():
        assert (label is None) == (first[name] == second[name])
        assert label is None or {label, other[name]} == {0, 1}
        assert label is None or (first, second)[label][name] == max(first[name], second[name])


WORDS = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=4).map(" ".join)


@given(head=WORDS, chosen=WORDS, rejected=WORDS)
def test_an_implicit_prompt_loses_nothing_and_splits_no_word(head: str, chosen: str, rejected: str) -> None:
    row = {"chosen": f"{head} {chosen}", "rejected": f"{head} {rejected}"}
    (found,) = read(PreferenceRow, row)
    whole = [found["prompt"] + response for response in found["responses"]]
    assert whole == [row["chosen"], row["rejected"]]
    assert all(response[0].isspace() for response in found["responses"])
    if chosen != rejected:
        assert found["labels"] == {"overall": 0}


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


def dialogues(final: str) -> st.SearchStrategy[list[dict[str, str]]]:
    message = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT})
    last = st.fixed_dictionaries({"role": st.just(final), "content": TEXT})
    return st.builds(lambda before, end: [*before, end], st.lists(message, max_size=3), last)


PROMPTS = st.one_of(TEXT, dialogues("user"))


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_texts_round_trip(pairs: Sequence[tuple[str, str]]) -> None:
    assume(not any(completion.startswith(prompt) for prompt, completion in pairs))  # that beginning is cut off
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    assert read(PromptCompletionRow, *rows) == rows


@given(PROMPTS, TEXT)
def test_dialogues_round_trip(prompt: Any, answer: str) -> None:
    assume(isinstance(prompt, list) or not answer.startswith(prompt))
    conversational = isinstance(prompt, list)
    reply = [{"role": "assistant", "content": answer}]
    row = {"prompt": prompt, "completion": reply if conversational else answer}
    assert read(PromptCompletionRow, row) == [{"prompt": prompt, "completion": answer}]
    if conversational:
        assert read(PromptCompletionRow, {"messages": prompt + reply}) == [{"prompt": prompt, "completion": answer}]


def test_an_implicit_prompt_is_not_cut_off_a_second_time() -> None:
    (found,) = read(PreferenceRow, {"chosen": " a a b", "rejected": " a a c"})
    assert (found["prompt"], found["responses"]) == (" a a", [" b", " c"])
    (found,) = read(PreferenceRow, {"chosen": " a x", "rejected": " a a c"})
    assert (found["prompt"], found["responses"]) == (" a", [" x", " a c"])


def test_a_form_that_does_not_serve_is_refused() -> None:
    with pytest.raises(InvalidDataset, match="prompt rows can not be used as preference rows") as caught:
        read(PreferenceRow, {"prompt": "a"})
    assert caught.value.param == "format"


def test_attributes_of_a_row_are_limited() -> None:
    many = {f"a{number}": 0 for number in range(MAX_ATTRIBUTES + 1)}
    with pytest.raises(InvalidDataset, match="labels"):
        read(PreferenceRow, {**PAIR, "labels": many})
