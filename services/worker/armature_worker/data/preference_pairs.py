"""An ARM's data: labelled answer pairs, tokenised once, and the pairs held out for validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from armature.contracts.datasets import PreferenceRow
from armature.contracts.specs.arm import ArmTrainSpec
from armature.errors import InvalidDataset
from armature_worker.context.ports import RecipeContext
from armature_worker.data.tokenized import Example, RowEncoder, generator, load_rows, report_rows, require_rows

_SPLIT = 5
_SIGNS = {0: 1.0, 1: -1.0, None: 0.0}


@dataclass(frozen=True)
class LabelledPair:
    """Two answers to a prompt; per attribute +1 if the first is better, -1 if the second, 0 for a tie."""

    examples: Sequence[Example]
    signs: Sequence[float]


@dataclass(frozen=True)
class ArmData:
    """The pairs that an ARM trains on, and those that validate it; the latter may be empty."""

    training: Sequence[LabelledPair]
    held_out: Sequence[LabelledPair]


def signs_of(pairs: Sequence[LabelledPair], device: str) -> Tensor:
    """Stack the labels of a batch, (N, K) in {+1, -1, 0}."""
    return torch.tensor([pair.signs for pair in pairs], device=device)


def load_data(spec: ArmTrainSpec, context: RecipeContext, tokenizer: PreTrainedTokenizerBase) -> ArmData:
    """Load the pairs of the job's data sets, split into training and validation.

    Raises:
        InvalidDataset: The chat template refuses a row, no pair is left to train on or to validate with, an attribute
            has no label at all, or the share to hold out leaves no prompt to train on.
    """
    rows, held_out, held_out_role = _load(context, "pairs"), list[PreferenceRow](), "pairs"
    if "validation_pairs" in context.files:
        held_out, held_out_role = _load(context, "validation_pairs"), "validation_pairs"
    elif spec.validation.share:
        rows, held_out = split_by_prompt(rows, spec.validation.share, spec.seed)
    pairs = _tokenise_rows(rows, spec, context, tokenizer, "pairs")
    for index, name in enumerate(spec.attributes):
        if not any(pair.signs[index] for pair in pairs):
            raise InvalidDataset(f"no pair has a label for {name}", param=f"spec.attributes.{index}")
    return ArmData(pairs, _tokenise_rows(held_out, spec, context, tokenizer, held_out_role) if held_out else [])


def split_by_prompt(
    rows: Sequence[PreferenceRow], share: float, seed: int
) -> tuple[list[PreferenceRow], list[PreferenceRow]]:
    """Hold out a share of the prompts, at least one, with all their pairs: no prompt is on both sides.

    Raises:
        InvalidDataset: No prompt is left to train on.
    """
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    count = max(1, round(share * len(prompts)))
    if count >= len(prompts):
        message = f"of {len(prompts)} prompts none would be left to train on"
        raise InvalidDataset(message, param="spec.validation.share")
    order = torch.randperm(len(prompts), generator=generator(seed, _SPLIT))
    chosen = {prompts[index] for index in order[:count].tolist()}
    return [row for row in rows if row.prompt not in chosen], [row for row in rows if row.prompt in chosen]


def _load(context: RecipeContext, role: str) -> list[PreferenceRow]:
    return load_rows(context, role, PreferenceRow)


def _tokenise_rows(
    rows: Sequence[PreferenceRow],
    spec: ArmTrainSpec,
    context: RecipeContext,
    tokenizer: PreTrainedTokenizerBase,
    role: str,
) -> list[LabelledPair]:
    """Tokenise pairs; count and drop those cut before an answer, or to the same answer twice."""
    pairs, same = [], 0
    encoder = RowEncoder.of(context, role, tokenizer, spec.chat)
    for row in rows:
        examples = encoder.tokenise(row.prompt, row.responses, spec.training.max_length)
        if examples and examples[0] == examples[1]:
            same += 1
        elif examples:
            pairs.append(LabelledPair(examples, [_SIGNS[row.labels.get(name)] for name in spec.attributes]))
    if same:
        context.log(f"{same} of {len(rows)} {role} have the same answer twice, within max_length", "warn")
    if same and not pairs:
        raise InvalidDataset("no pair has two different answers within max_length", param=f"spec.{role}")
    require_rows(pairs, len(rows), f"spec.{role}")
    report_rows(context, role, [pair.examples for pair in pairs], len(rows) - same)
    return pairs
