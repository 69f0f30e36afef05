"""The everyday prompts of the demo on a real model: each once, short, and readable as a data set."""

from __future__ import annotations

from importlib.resources import files

from armature.contracts.datasets import PromptRow
from armature.datasets.row_reader import read_rows


def test_the_prompts_are_a_data_set_without_repeats() -> None:
    with files("armature_cli.demo.real").joinpath("prompts.jsonl").open("rb") as file:
        prompts = [str(row.prompt) for row in read_rows(file, PromptRow, None)]
    assert len(prompts) == len({prompt.lower() for prompt in prompts}) >= 100
    assert max(map(len, prompts)) < 120
