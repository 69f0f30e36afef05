"""Forms of real data sets, recognised as they are. The rows are written for these tests; the columns are the sets'."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from armature.contracts.datasets import ROWS, USABLE_AS, PreferenceRow
from armature.contracts.file_scans import FileScan
from armature.datasets.row_reader import read_rows
from armature.datasets.scan import scan_rows


def lines(*rows: Any) -> io.BytesIO:
    return io.BytesIO("".join(json.dumps(row) + "\n" for row in rows).encode())


def scan(*rows: Any) -> FileScan:
    return scan_rows(lines(*rows))


def read(*rows: Any) -> list[dict[str, Any]]:
    """The rows as the first use of their format gives them to jobs."""
    format = scan(*rows).format
    assert format is not None
    return [row.model_dump(mode="json") for row in read_rows(lines(*rows), ROWS[USABLE_AS[format][0]])]


def told(*rows: Any) -> dict[str, int]:
    return {warning.code: warning.count for warning in scan(*rows).validation.warnings}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def completion(prompt: Any, answer: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer}


def pair(prompt: Any, first: str, second: str, **labels: int | None) -> dict[str, Any]:
    return {"prompt": prompt, "responses": [first, second], "labels": labels or {"overall": 0}}


CHAT = [user("Is it?"), assistant("yes")]
OTHER = [user("Is it?"), assistant("no")]
MARKED = "\n\nHuman: Tea?\n\nAssistant: Yes. Milk?\n\nHuman: No.\n\nAssistant:"
TURNS = [user("Tea?"), assistant("Yes. Milk?"), user("No.")]
RATED = {"helpfulness": 4, "correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 2}
WORSE = {**RATED, "helpfulness": 1, "verbosity": 3}


def annotations(**ratings: str) -> dict[str, Any]:
    return {name: {"Rating": rating, "Rationale": "because"} for name, rating in ratings.items()}


FORMS: dict[str, tuple[str, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "hh-rlhf": (
        "transcript_pair",
        [{"chosen": MARKED + " Here\nit is.", "rejected": MARKED + " Here you go: milk."}],
        [pair(TURNS, "Here\nit is.", "Here you go: milk.")],
    ),
    "full-hh-rlhf, the prompt apart": (
        "chosen_rejected",
        [{"prompt": MARKED, "response": " Here.", "chosen": " Here.", "rejected": " Milk."}],
        [pair(TURNS, " Here.", " Milk.")],
    ),
    "ultrafeedback_binarized": (
        "chosen_rejected",
        [
            {
                "prompt": "Is it?",
                "prompt_id": "a1",
                "chosen": CHAT,
                "rejected": OTHER,
                "messages": CHAT,
                "score_chosen": 8.0,
                "score_rejected": 6.5,
            }
        ],
        [pair([user("Is it?")], "yes", "no")],
    ),
    "ultrachat_200k": (
        "messages",
        [{"prompt": "Is it?", "prompt_id": "a1", "messages": [*CHAT, user("Why?"), assistant("So.")]}],
        [completion([*CHAT, user("Why?")], "So.")],
    ),
    "no_robots": (
        "messages",
        [{"prompt": "Is it?", "prompt_id": "a1", "messages": [system("Be brief."), *CHAT], "category": "Chat"}],
        [completion([system("Be brief."), user("Is it?")], "yes")],
    ),
    "argilla ultrafeedback": (
        "chosen_rejected",
        [
            {
                "source": "x",
                "prompt": "Is it?",
                "chosen": CHAT,
                "chosen-rating": 5.0,
                "rejected": OTHER,
                "rejected-rating": 3.0,
            }
        ],
        [pair([user("Is it?")], "yes", "no")],
    ),
    "orpo-dpo-mix": (
        "chosen_rejected",
        [
            {
                "source": "x",
                "prompt": "Is it?",
                "question": None,
                "chosen": [*CHAT, user("Why?"), assistant("So.")],
                "rejected": [*CHAT, user("Why?"), assistant("No.")],
            }
        ],
        [pair([*CHAT, user("Why?")], "So.", "No.")],
    ),
    "PKU-SafeRLHF": (
        "pku_safe_rlhf",
        [
            {
                "prompt": "Is it?",
                "response_0": "yes",
                "response_1": "no",
                "is_response_0_safe": False,
                "is_response_1_safe": True,
                "better_response_id": 0,
                "safer_response_id": 1,
            }
        ],
        [pair("Is it?", "yes", "no", helpfulness=0, harmlessness=1)],
    ),
    "HelpSteer2": (
        "helpsteer",
        [{"prompt": "Is it?", "response": "yes", **RATED}, {"prompt": "Is it?", "response": "no", **WORSE}],
        [pair("Is it?", "yes", "no", helpfulness=0, correctness=None, coherence=None, complexity=None, verbosity=1)],
    ),
    "HelpSteer2, several turns": (
        "helpsteer",
        [
            {"prompt": "Tea?\n<extra_id_1>Assistant\nYes. Milk?\n<extra_id_1>User\nNo.", "response": text, **scores}
            for text, scores in (("Here.", RATED), ("Milk.", WORSE))
        ],
        [pair(TURNS, "Here.", "Milk.", helpfulness=0, correctness=None, coherence=None, complexity=None, verbosity=1)],
    ),
    "HelpSteer2 preference": (
        "helpsteer_preference",
        [{"prompt": "Is it?", "response_1": "yes", "response_2": "no", "preference_strength": 2, "split": "train"}],
        [pair("Is it?", "yes", "no", overall=1)],
    ),
    "HelpSteer3": (
        "helpsteer_preference",
        [
            {"domain": "x", "context": TURNS, "response1": "yes", "response2": "no", "overall_preference": -3},
            {"domain": "x", "context": TURNS, "response1": "yes", "response2": "no", "overall_preference": 0},
        ],
        [pair(TURNS, "yes", "no"), pair(TURNS, "yes", "no", overall=None)],
    ),
    "Nectar": (
        "nectar",
        [
            {
                "prompt": MARKED,
                "answers": [{"answer": f"rank {rank}", "model": "m", "rank": float(rank)} for rank in (3, 1, 5, 2, 4)],
                "turns": 2,
                "num_responses": 5,
                "source": ["x"],
                "good_natured": True,
            }
        ],
        [pair(TURNS, "rank 1", "rank 5"), pair(TURNS, "rank 2", "rank 4")],
    ),
    "UltraFeedback": (
        "ultrafeedback",
        [
            {
                "source": "x",
                "instruction": "Is it?",
                "models": ["a", "b", "c"],
                "completions": [
                    {"response": "no", "annotations": annotations(helpfulness="1", honesty="5"), "overall_score": 2.0},
                    {"response": "yes", "annotations": annotations(helpfulness="5", honesty="4"), "overall_score": 9.0},
                    {"response": "hm", "annotations": annotations(helpfulness="N/A"), "overall_score": 1.0},
                ],
            }
        ],
        [pair("Is it?", "yes", "no", helpfulness=0, honesty=1)],
    ),
    "OpenAI preference": (
        "openai_preference",
        [
            {
                "input": {"messages": [{"role": "developer", "content": "Be brief."}, user("Is it?")], "tools": []},
                "preferred_output": [assistant("yes")],
                "non_preferred_output": [assistant("no")],
            }
        ],
        [pair([system("Be brief."), user("Is it?")], "yes", "no")],
    ),
    "OpenAI chat": (
        "messages",
        [{"messages": [system("Be brief."), user("Is it?"), {**assistant("yes"), "weight": 1}]}],
        [completion([system("Be brief."), user("Is it?")], "yes")],
    ),
    "Alpaca": (
        "prompt_completion",
        [
            {"instruction": "Add.", "input": "1 and 2", "output": "3", "text": "Below is an instruction ..."},
            {"instruction": "Is it?", "input": "", "output": "yes", "text": "Below is an instruction ..."},
        ],
        [completion("Add.\n\n1 and 2", "3"), completion("Is it?", "yes")],
    ),
    "Alpaca pairs": (
        "chosen_rejected",
        [{"instruction": "Add.", "input": "1 and 2", "chosen": "3", "rejected": "4"}],
        [pair("Add.\n\n1 and 2", "3", "4")],
    ),
    "ShareGPT": (
        "messages",
        [
            {
                "id": "a",
                "system": "Be brief.",
                "conversations": [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "yes"}],
            }
        ],
        [completion([system("Be brief."), user("Is it?")], "yes")],
    ),
    "orca_dpo_pairs": (
        "chosen_rejected",
        [
            {"system": "Be brief.", "question": "Is it?", "chosen": "yes", "rejected": "no"},
            {"system": "", "question": "Is it?", "chosen": "yes", "rejected": "no"},
        ],
        [pair([system("Be brief."), user("Is it?")], "yes", "no"), pair("Is it?", "yes", "no")],
    ),
    "OpenOrca": (
        "prompt_completion",
        [{"id": "a", "system_prompt": "Be brief.", "question": "Is it?", "response": "yes"}],
        [completion([system("Be brief."), user("Is it?")], "yes")],
    ),
    "distilabel orca pairs": (
        "chosen_rejected",
        [{"system": "Be brief.", "input": "Is it?", "chosen": "yes", "rejected": "no", "rating": [9, 3]}],
        [pair([system("Be brief."), user("Is it?")], "yes", "no")],
    ),
    "KTO with 0 and 1": (
        "rated_answer",
        [{"prompt": "Is it?", "completion": "yes", "label": 1}, {"prompt": "Is it?", "completion": "no", "label": 0}],
        [pair("Is it?", "yes", "no")],
    ),
    "kto-mix-14k": (
        "rated_answer",
        [
            {"prompt": [user("Is it?")], "completion": [assistant("yes")], "label": True},
            {"prompt": [user("Is it?")], "completion": [assistant("no")], "label": False},
        ],
        [pair([user("Is it?")], "yes", "no")],
    ),
    "parts of content": (
        "messages",
        [
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Is "}, {"type": "text", "text": "it?"}]},
                    assistant("yes"),
                ]
            }
        ],
        [completion([user("Is it?")], "yes")],
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_known_form_gives_the_rows_that_jobs_use(name: str) -> None:
    form, rows, expected = FORMS[name]
    assert read(*rows) == expected
    found = scan(*rows)
    assert (found.form, found.validation.errors) == (form, [])


@pytest.mark.parametrize("name", FORMS)
def test_a_known_form_has_a_prompt_to_ask_per_row(name: str) -> None:
    _, rows, _ = FORMS[name]
    assert len(list(read_rows(lines(*rows), ROWS["prompt"]))) == len(rows)


def test_empty_answers_of_transcripts_are_left_out_and_counted() -> None:
    whole = {"chosen": MARKED + " Here.", "rejected": MARKED + " Milk."}
    empty = {"chosen": MARKED + " Here.", "rejected": MARKED}
    longer = {"chosen": MARKED + " Here.\n\nHuman: Thanks.\n\nAssistant: Sure.", "rejected": MARKED + " Milk."}
    assert read(whole, empty, longer) == [pair(TURNS, "Here.", "Milk.")]
    assert told(whole, empty, longer) == {"empty_answers": 1, "different_prompts": 1}
    found = scan(whole, empty)
    assert (found.statistics.rows, found.validation.error_count) == (1, 0)
    assert [error.code for error in scan(empty).validation.errors] == ["no_rows"]


def test_an_empty_answer_elsewhere_is_a_bad_row() -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    for empty in ("", [assistant("")]):
        found = scan(good, {"prompt": "a", "chosen": [assistant("b")] if empty else "b", "rejected": empty}).validation
        assert ([error.line for error in found.errors], found.skippable) == ([2], True)


def test_answers_that_begin_with_the_prompt_lose_that_beginning() -> None:
    row = {"prompt": "Question: is it?\nAnswer:", "chosen": "Question: is it?\nAnswer: yes"}
    rows = [{**row, "rejected": "Question: is it?\nAnswer: no"}, {**row, "rejected": "something else"}]
    assert [found["responses"] for found in read(*rows)] == [[" yes", " no"], [row["chosen"], "something else"]]
    assert told(*rows) == {"repeated_prompts": 2}
    answered = {"prompt": row["prompt"], "completion": row["chosen"]}
    assert read(answered) == [completion(row["prompt"], " yes")]
    assert read({"prompt": "no", "completion": "note"}) == [completion("no", "note")]


def test_a_prompt_apart_is_the_dialogues_own_or_is_told() -> None:
    row = {"chosen": CHAT, "rejected": OTHER}
    assert told({**row, "prompt": " Is it?\n"}) == {}
    assert told({**row, "prompt": "USER: Is it? ASSISTANT:"}) == {"other_prompts": 1}
    assert read({**row, "prompt": [user("Is it?")]}) == [pair([user("Is it?")], "yes", "no")]


def test_messages_of_tools_are_left_out_and_counted() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "clock"}}]}
    result = {"role": "tool", "tool_call_id": "1", "content": "12:00"}
    row = {"messages": [user("What time is it?"), call, result, assistant("Noon.")], "tools": [{"type": "function"}]}
    assert read(row) == [completion([user("What time is it?")], "Noon.")]
    assert told(row) == {"tool_messages": 2}


def test_answers_of_middle_or_equal_rank_are_counted() -> None:
    answers = [{"answer": text, "rank": rank} for text, rank in (("a", 1), ("b", 2), ("c", 3))]
    assert told({"prompt": "Is it?", "answers": answers}) == {"unpaired_ranks": 1}
    level = [{"answer": text, "rank": 1} for text in "ab"]
    assert told({"prompt": "Is it?", "answers": level}, {"prompt": "Is it?", "answers": answers}) == {
        "unpaired_ranks": 3
    }


@pytest.mark.parametrize(
    ("row", "named", "wanted"),
    [
        ({"prompt": "a", "label": "safe", "focus": "x"}, "(label)", '{"prompt", "completion", "label"}'),
        ({"prompt": "a", "completion": "b", "toxicity": 0.2}, "(toxicity)", '"scores"}'),
        ({"messages": CHAT, "rating": 3, "quality_score": 1}, "(quality_score, rating)", '"scores"}'),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 3.0}, "(score_chosen)", '"responses"'),
    ],
)
def test_judgements_that_are_not_used_are_told_with_the_form_that_takes_them(
    row: dict[str, Any], named: str, wanted: str
) -> None:
    (warning,) = [one for one in scan(row, row).validation.warnings if one.code == "unused_judgements"]
    assert named in warning.message
    assert wanted in warning.message
    assert warning.count == 2


def test_a_column_that_is_null_in_the_first_row_only_is_no_absent_one() -> None:
    empty = {"prompt": "Is it?", "response": None, "response_harm_label": None}
    rated = {"prompt": "Is it?", "response": "yes", "response_harm_label": "unharmful"}
    assert scan(empty, rated).form == "wildguard"
    assert scan_rows(io.BytesIO(b"prompt,response,response_harm_label\na,,\nb,c,harmful\n")).form == "wildguard"
    assert scan({"prompt": "a", "completion": "b", "label": None}).form == "prompt_completion"
    assert scan({"prompt": "a"}, {"prompt": "b", "messages": "x"}).form == "prompt"


def test_what_is_no_judgement_is_not_told() -> None:
    assert told({"prompt": "a", "completion": "b", "id": 7, "category": "x", "source": "y", "ranked_at": 1}) == {}
    assert told({"prompt": "a", "completion": "b", "label": True}) == {"unpaired_answers": 1}


def test_a_label_of_a_choice_is_the_data_sets_attribute() -> None:
    row = {"history": "Is it?", "human_ref_A": "yes", "human_ref_B": "no", "labels": 0}
    (found,) = read_rows(lines(row), PreferenceRow, "helpfulness")
    assert found.labels == {"helpfulness": 1}
