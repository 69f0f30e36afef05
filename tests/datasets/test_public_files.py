"""More public data sets in their own columns; docs/datasets.md lists each with its source.

The texts are written for these tests.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.datasets.test_known_forms import assistant, completion, pair, read, scan, system, told, user

PAGE = Path(__file__).resolve().parents[2] / "docs" / "datasets.md"

SAID = "### Human: Tea?### Assistant: Yes. Milk?### Human: No.### Assistant: Here."
TEA = [user("Tea?"), assistant("Yes. Milk?"), user("No.")]
COMMENTS = {"post_id": "p1", "domain": "askbakers_train", "upvote_ratio": 0.9, "score_A": 12, "score_B": 3}

PUBLIC: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, int]]] = {
    "PKU-Alignment/BeaverTails": (
        [
            {"prompt": "Tea?", "response": "Never.", "category": {"privacy_violation": False}, "is_safe": False},
            {"prompt": "Tea?", "response": "Gladly.", "category": {"privacy_violation": False}, "is_safe": True},
        ],
        [pair("Tea?", "Never.", "Gladly.", harmlessness=1)],
        {},
    ),
    "LDJnr/Capybara": (
        [
            {
                "source": "x",
                "conversation": [{"input": "Tea?", "output": "Yes. Milk?"}, {"input": "No.", "output": "Here."}],
            }
        ],
        [completion(TEA, "Here.")],
        {},
    ),
    "timdettmers/openassistant-guanaco": ([{"text": SAID}], [completion(TEA, "Here.")], {}),
    "allenai/tulu-3-sft-mixture": (
        [{"id": "x_1", "messages": [*TEA, assistant("Here.")], "source": "x"}],
        [completion(TEA, "Here.")],
        {},
    ),
    "openbmb/UltraInteract_pair": (
        [
            {
                "task": "Math_CoT",
                "dataset": "x",
                "trajectory": [{"from": "user", "value": "1 + 1?"}],
                "chosen": "2",
                "rejected": "3",
                "id": "0",
                "parent_id": "",
            }
        ],
        [pair([user("1 + 1?")], "2", "3")],
        {},
    ),
    "Skywork/Skywork-Reward-Preference-80K-v0.2": (
        [{"chosen": [*TEA, assistant("Here.")], "rejected": [*TEA, assistant("Milk.")], "source": "x"}],
        [pair(TEA, "Here.", "Milk.")],
        {},
    ),
    "allenai/wildguardmix": (
        [
            {
                "prompt": "Tea?",
                "adversarial": False,
                "response": response,
                "prompt_harm_label": "unharmful",
                "response_refusal_label": None,
                "response_harm_label": label,
                "subcategory": "benign",
            }
            for response, label in (("Gladly.", "unharmful"), ("Never.", "harmful"), (None, None))
        ],
        [pair("Tea?", "Gladly.", "Never.", harmlessness=0)],
        {"unrated_answers": 1, "unused_judgements": 3},
    ),
    "Anthropic/hh-rlhf red-team-attempts": (
        [
            {
                "min_harmlessness_score_transcript": 1.5,
                "num_params": "52B",
                "transcript": "\n\nHuman: Tea?\n\nAssistant: Yes. Milk?\n\nHuman: No.\n\nAssistant: Here.",
                "rating": 2.0,
                "task_description": "ask for tea",
            }
        ],
        [completion(TEA, "Here.")],
        {"unused_judgements": 1},
    ),
    "stanfordnlp/SHP": (
        [{**COMMENTS, "history": "Which flour?", "human_ref_A": "Rye.", "human_ref_B": "Any.", "labels": 1}],
        [pair("Which flour?", "Rye.", "Any.")],
        {"unused_judgements": 1},
    ),
    "databricks/databricks-dolly-15k": (
        [
            {"instruction": "When?", "context": "It is noon.", "response": "At noon.", "category": "closed_qa"},
            {"instruction": "Name a tea.", "context": "", "response": "Oolong.", "category": "open_qa"},
        ],
        [completion("When?\n\nIt is noon.", "At noon."), completion("Name a tea.", "Oolong.")],
        {},
    ),
    "allenai/prosocial-dialog": (
        [
            {
                "context": "I took the last biscuit.",
                "response": "Would asking first be kinder?",
                "rots": ["Share biscuits."],
                "safety_label": "__needs_caution__",
                "episode_done": False,
            }
        ],
        [completion("I took the last biscuit.", "Would asking first be kinder?")],
        {"unused_judgements": 1},
    ),
    "teknium/OpenHermes-2.5": (
        [
            {
                "conversations": [
                    {"from": "system", "value": "Be brief.", "weight": None},
                    {"from": "human", "value": "Tea?", "weight": None},
                    {"from": "gpt", "value": "Yes.", "weight": None},
                ],
                "source": "x",
                "system_prompt": None,
            }
        ],
        [completion([system("Be brief."), user("Tea?")], "Yes.")],
        {},
    ),
    "GAIR/lima": ([{"conversations": ["Tea?", "Yes."], "source": "x"}], [completion([user("Tea?")], "Yes.")], {}),
    "openai/gsm8k": ([{"question": "1 + 1?", "answer": "#### 2"}], [completion("1 + 1?", "#### 2")], {}),
    "meta-math/MetaMathQA": (
        [{"type": "x", "query": "1 + 1?", "original_question": "1 + 1?", "response": "2"}],
        [completion("1 + 1?", "2")],
        {},
    ),
    "lmsys/chatbot_arena_conversations": (
        [
            {
                "question_id": "q",
                "winner": winner,
                "conversation_a": [user("Tea?"), assistant("Yes.")],
                "conversation_b": [user("Tea?"), assistant("No.")],
                "toxic_chat_tag": {},
            }
            for winner in ("model_b", "tie")
        ],
        [pair([user("Tea?")], "Yes.", "No.", overall=1), pair([user("Tea?")], "Yes.", "No.", overall=None)],
        {},
    ),
    "truthfulqa/truthful_qa": (
        [
            {
                "Type": "x",
                "Question": "Tea?",
                "Best Answer": "A drink.",
                "Best Incorrect Answer": "A stone.",
                "Correct Answers": "A drink.; A leaf.",
            }
        ],
        [pair("Tea?", "A drink.", "A stone.", truthfulness=0)],
        {},
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_file_is_read_as_it_is(name: str) -> None:
    rows, expected, warnings = PUBLIC[name]
    assert read(*rows) == expected
    assert scan(*rows).validation.errors == []
    assert told(*rows) == warnings


def test_the_page_lists_each_with_its_source() -> None:
    listed = re.findall(r"^\| \[([^\]]+)\]\(https://huggingface.co/datasets/", PAGE.read_text(), re.M)
    assert sorted(listed) == sorted(PUBLIC)
