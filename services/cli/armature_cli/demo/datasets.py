"""The world's data sets as rows of the platform's formats, by their role in the demo's jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from armature.contracts.datasets import DatasetFormat
from armature_cli.demo import plan
from armature_cli.demo.world import World, lexicon

Rows = list[Mapping[str, Any]]


def datasets(world: World) -> dict[str, tuple[DatasetFormat, Rows]]:
    """Make the data sets of training and evaluation; the roles are the fields of :class:`plan.Datasets`."""
    return {
        "harmful_pairs": ("prompt_completion", completions(world.harmful_pairs(plan.HARMFUL_PAIRS))),
        "preference_pairs": ("preference", [asdict(p) for p in world.preference_pairs(plan.PREFERENCE_PAIRS)]),
        "lexicon": ("lexicon", [lexicon()]),
        "harmful_prompts": ("prompt", prompts(world.held_out_harmful_prompts(plan.ATTACKS))),
        "harmful_openings": ("prompt_completion", completions(world.harmful_openings(plan.OPENINGS))),
        "benign_pairs": ("prompt_completion", completions(world.held_out_benign_pairs(plan.BENIGN_PAIRS))),
        "benign_prompts": ("prompt", prompts(world.held_out_benign_prompts(plan.QUESTIONS))),
    }


def completions(pairs: Iterable[tuple[str, str]]) -> Rows:
    """Make rows of the format ``prompt_completion``."""
    return [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]


def prompts(texts: Iterable[str]) -> Rows:
    """Make rows of the format ``prompt``."""
    return [{"prompt": text} for text in texts]
