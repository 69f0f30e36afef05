"""Real files as they were published, read where they lie; the counts were made by other means (below)."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from armature.contracts.datasets import PreferenceRow, PromptCompletionRow, PromptRow
from armature.datasets.row_reader import read_rows
from armature.datasets.scan import scan_rows

FOLDERS = [folder / "shared" / "data" for folder in Path(__file__).resolve().parents]
DATA = next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[0])
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not on this machine")

HH = "hh_rlhf/harmless_pairs.jsonl.gz"
COUNTS = {
    HH: ("transcript_pair", 1495, {"empty_answers": 4, "different_prompts": 1}),
    "advbench/harmful_behaviors.csv": ("prompt_completion", 520, {}),
    "xstest/prompts.csv": ("prompt", 225, {"unused_judgements": 225}),
    "red_instruct/dangerousqa.json": ("prompt", 200, {}),
    "red_instruct/harmfulqa.json": ("prompt", 1960, {"identical_rows": 22}),
    "mt_bench/questions.jsonl": ("questions", 80, {"later_turns": 80}),
    "truthfulqa/truthfulqa.jsonl": ("truthful_qa", 395, {}),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_real_file_is_read_whole(name: str) -> None:
    form, rows, warnings = COUNTS[name]
    with (DATA / name).open("rb") as file:
        found = scan_rows(file)
    assert (found.form, found.statistics.rows, found.validation.errors) == (form, rows, [])
    assert {warning.code: warning.count for warning in found.validation.warnings} == warnings


def test_hh_rlhf_pairs_are_cut_at_the_last_turn_and_nowhere_else() -> None:
    """Both sides of a row, put together again, are the row without its marks and the white space around turns."""
    with gzip.open(DATA / HH, "rt") as source:
        rows = [json.loads(line) for line in source]
    usable = []
    for row in rows:
        sides = [row[name].rpartition("\n\nAssistant:") for name in ("chosen", "rejected")]
        (first, _, chosen), (second, _, rejected) = sides
        if first == second and chosen.strip() and rejected.strip():
            usable.append((first, chosen.strip(), rejected.strip()))
    assert (len(rows), len(usable)) == (1500, 1495)
    with (DATA / HH).open("rb") as file:
        pairs = list(read_rows(file, PreferenceRow))
    assert [tuple(pair.responses) for pair in pairs] == [(chosen, rejected) for _, chosen, rejected in usable]
    for pair, (prompt, _, _) in zip(pairs, usable, strict=True):
        assert not isinstance(pair.prompt, str)
        assert pair.prompt[-1].role == "user"
        said = " ".join(message.content for message in pair.prompt)
        assert said.split() == re.sub(r"\n\n(Human|Assistant):", " ", prompt).split()


READERS: dict[str, Callable[[Path], list[str]]] = {
    "advbench/harmful_behaviors.csv": lambda path: [row["goal"] for row in csv.DictReader(path.open(newline=""))],
    "xstest/prompts.csv": lambda path: [row["prompt"] for row in csv.DictReader(path.open(newline=""))],
    "red_instruct/dangerousqa.json": lambda path: json.loads(path.read_text()),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_prompts_of_tables_and_lists_are_those_of_other_readers(name: str) -> None:
    with (DATA / name).open("rb") as file:
        assert [row.prompt for row in read_rows(file, PromptRow)] == READERS[name](DATA / name)


def test_answers_of_a_table_stay_with_their_prompts() -> None:
    path = DATA / "advbench/harmful_behaviors.csv"
    with path.open("rb") as file, path.open(newline="") as source:
        expected = [(row["goal"], row["target"]) for row in csv.DictReader(source)]
        assert [(row.prompt, row.completion) for row in read_rows(file, PromptCompletionRow)] == expected
