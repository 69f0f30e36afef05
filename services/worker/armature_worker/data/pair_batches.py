"""Collate answer pairs: both answers in one row behind their shared prompt, or one row per answer.

The first layout computes each prompt once; not every model supports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from armature.modeling.answer_logits import can_share_prompts, sharing_mask
from armature_worker.data.preference_pairs import LabelledPair
from armature_worker.data.tokenized import Example


@dataclass(frozen=True)
class PairBatch:
    """N pairs in N or 2N rows; pair i has the answers 2i and 2i + 1. M counts the tokens of all answers."""

    inputs: dict[str, Tensor]
    """Keyword arguments of the model."""
    predictors: Tensor
    """(M,) the position that predicts each token, with the rows laid end to end."""
    targets: Tensor
    """(M,) the predicted tokens, answer by answer."""
    answers: Tensor
    """(2N, longest answer) bool: which cells of a table by answer hold a token."""

    @property
    def rows_per_pair(self) -> int:
        """1 if both answers share a row, else 2."""
        return 2 * len(self.inputs["input_ids"]) // len(self.answers)


@dataclass(frozen=True)
class PairLayout:
    """How pairs become rows of a batch for one model."""

    device: str
    dtype: torch.dtype
    """The model's dtype."""
    shared: bool
    """Whether both answers of a pair share a row behind their prompt."""

    @classmethod
    def of(cls, model: PreTrainedModel, pairs: Sequence[LabelledPair], device: str) -> PairLayout:
        """Choose the cheapest layout that ``model`` supports for pairs of this length."""
        longest = max((sum(len(example.ids) for example in pair.examples) for pair in pairs), default=0)
        dtype = model.get_input_embeddings().weight.dtype
        return cls(device, dtype, can_share_prompts(model.config, longest))

    def collate(self, pairs: Sequence[LabelledPair]) -> PairBatch:
        """Collate ``pairs`` into one batch, padded on the right (docs/traps.md, 4).

        The pad id is 0, since no answer attends to it.
        """
        groups = [pair.examples for pair in pairs]
        if not self.shared:
            groups = [[example] for examples in groups for example in examples]
        rows = [_lay_out(examples) for examples in groups]
        length = max(len(row.ids) for row in rows)
        answers = [(number * length, answer) for number, row in enumerate(rows) for answer in row.answers]
        predictors = [start + column for start, answer in answers for column in answer.predictors]
        targets = [token for _, answer in answers for token in answer.targets]
        lengths = torch.tensor([len(answer.targets) for _, answer in answers])
        return PairBatch(
            {name: tensor.to(self.device) for name, tensor in self._inputs(rows).items()},
            torch.tensor(predictors, device=self.device),
            torch.tensor(targets, device=self.device),
            (torch.arange(int(lengths.max())) < lengths[:, None]).to(self.device),
        )

    def _inputs(self, rows: Sequence[_Row]) -> dict[str, Tensor]:
        ids = pad_sequence([torch.tensor(row.ids) for row in rows], batch_first=True)
        padding = 1 + max(len(row.answers) for row in rows)
        segments = pad_sequence([torch.tensor(row.segments) for row in rows], True, padding)
        if not self.shared:
            return {"input_ids": ids, "attention_mask": (segments != padding).long()}
        positions = pad_sequence([torch.tensor(row.positions) for row in rows], batch_first=True)
        mask = sharing_mask(segments, self.dtype)
        return {"input_ids": ids, "position_ids": positions, "attention_mask": mask}


class _Answer(NamedTuple):
    """An answer's tokens, and the columns that predict them."""

    predictors: list[int]
    targets: list[int]


class _Row(NamedTuple):
    """A prompt (segment 0) and the answers behind it."""

    ids: list[int]
    positions: list[int]
    segments: list[int]
    answers: list[_Answer]


def _lay_out(examples: Sequence[Example]) -> _Row:
    """Lay out a prompt and its answers in a row; without a prompt, nothing predicts the row's first token."""
    start = examples[0].completion_start
    row = _Row(examples[0].ids[:start], list(range(start)), [0] * start, [])
    for segment, example in enumerate(examples, 1):
        answer, first = example.ids[start:], len(row.ids)
        columns = [start - 1, *range(first, first + len(answer) - 1)]
        unpredicted = 0 if start else 1
        row.answers.append(_Answer(columns[unpredicted:], answer[unpredicted:]))
        row.ids.extend(answer)
        row.positions.extend(range(start, start + len(answer)))
        row.segments.extend([segment] * len(answer))
    return row
