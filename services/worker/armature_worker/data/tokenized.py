"""Data sets for training: rows tokenised once, completions masked, batches as functions of the step.

The rows of step t depend on (seed, t) alone, so a resumed run needs no saved random state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from armature.contracts.chat import AS_SENT, ChatFormat
from armature.contracts.datasets import Prompt, PromptRow, Row
from armature.contracts.specs.base import BaseSpec
from armature.datasets.row_reader import find_line, read_rows
from armature.errors import InvalidDataset, InvalidRequest
from armature.modeling.tokenization.answers import encode_answers
from armature.modeling.tokenization.prompts import encode_prompt
from armature_worker.context.ports import RecipeContext
from armature_worker.host.memory_estimate import RowLengths

R = TypeVar("R", bound=Row)
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and its completion; the loss covers those from ``completion_start`` on."""

    ids: list[int]
    completion_start: int


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right, each tensor (rows, seq).

    Masks come from lengths, never from the pad id, which may occur in a text (docs/traps.md, 4).
    """

    ids: torch.Tensor
    attention_mask: torch.Tensor
    completion_mask: torch.Tensor
    """True where the token is part of the completion."""

    def to(self, device: str) -> Batch:
        """Move the batch to a device."""
        return Batch(self.ids.to(device), self.attention_mask.to(device), self.completion_mask.to(device))

    @property
    def predictors(self) -> torch.Tensor:
        """The position that predicts each completion token, with the rows laid end to end.

        No position predicts a row's first token.
        """
        rows, columns = self.completion_mask[:, 1:].nonzero(as_tuple=True)
        return rows * self.ids.shape[1] + columns

    @property
    def targets(self) -> torch.Tensor:
        """The completion tokens, in the order of :attr:`predictors`."""
        return self.ids[:, 1:][self.completion_mask[:, 1:]]


def load_rows(context: RecipeContext, role: str, model: type[R]) -> list[R]:
    """Load all rows of the data set in a role, in whatever form, as rows of ``model``.

    Bad rows that the data set skips are counted in the job's events.

    Args:
        context: The job's.
        role: The data set's role.
        model: The class of rows to return.

    Raises:
        InvalidDataset: A row is bad (the message has its line), or the file's form does not fit ``model``.
    """
    skipped: Counter[str] = Counter()
    rows = _read(context, role, model, skipped)
    if skipped:
        context.log(
            f"{skipped.total()} bad rows of {role} are left out", "warn", {"role": role, "codes": dict(skipped)}
        )
    return rows


def _read(context: RecipeContext, role: str, model: type[R], skipped: Counter[str]) -> list[R]:
    attribute, on_bad_rows = context.label_attributes.get(role), context.bad_rows.get(role, "refuse")
    with context.files[role].open("rb") as file:
        return list(read_rows(file, model, attribute, on_bad_rows, skipped))


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    completions: Sequence[str],
    max_length: int,
    chat: ChatFormat = AS_SENT,
) -> list[Example] | None:
    """Tokenise one prompt with each completion and the end of the turn, cut to ``max_length`` tokens.

    None if the cut leaves nothing of the completions: such a row has nothing to learn from.
    """
    before, answers = encode_answers(tokenizer, prompt, completions, chat)
    if len(before) >= max_length:
        return None
    return [Example([*before, *answer][:max_length], len(before)) for answer in answers]


@dataclass(frozen=True)
class RowEncoder:
    """The encoder of a data set's rows. What the model can not read is refused with the row's line."""

    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    path: Path
    """The data set's file."""
    role: str
    """The data set's role in the spec."""

    @classmethod
    def of(cls, context: RecipeContext, role: str, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> RowEncoder:
        """Make the encoder of one of the job's data sets."""
        return cls(tokenizer, chat, context.files[role], role)

    def tokenise(self, prompt: Prompt, completions: Sequence[str], max_length: int) -> list[Example] | None:
        """Tokenise a row, as :func:`tokenise` does.

        Raises:
            InvalidDataset: The chat template refuses the row; the message names the line and the field.
        """
        return self._naming(prompt, lambda: tokenise(self.tokenizer, prompt, completions, max_length, self.chat))

    def encode(self, prompt: Prompt) -> list[int]:
        """Encode a row's prompt; raises as :meth:`tokenise` does."""
        return self._naming(prompt, lambda: encode_prompt(self.tokenizer, prompt, self.chat))

    def _naming(self, prompt: Prompt, encode: Callable[[], T]) -> T:
        try:
            return encode()
        except InvalidRequest as error:
            with self.path.open("rb") as file:
                line = find_line(file, prompt)
            place = f"line {line} of {self.role}, field {error.param or 'prompt'}"
            raise InvalidDataset(f"{place}: {error.message}", param=f"spec.{self.role}") from error


def try_rows(spec: BaseSpec, context: RecipeContext, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> None:
    """Encode every prompt of the job's data sets, so that an unreadable one fails before any work.

    Raises:
        InvalidDataset: With the line and the field.
    """
    for role, reference in spec.references().items():
        if reference.dataset_use in ("prompt", "prompt_completion"):
            encoder = RowEncoder.of(context, role, tokenizer, chat)
            for row in _read(context, role, PromptRow, Counter()):
                encoder.encode(row.prompt)


def collate(examples: Sequence[Example], device: str) -> Batch:
    """Pad to the longest example of the batch with id 0; any id would do, since it is masked out."""
    lengths = torch.tensor([len(example.ids) for example in examples])
    starts = torch.tensor([example.completion_start for example in examples])
    ids = torch.zeros(len(examples), int(lengths.max()), dtype=torch.long)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
    positions = torch.arange(ids.shape[1])
    real = positions < lengths[:, None]
    return Batch(ids.to(device), real.long().to(device), (real & (positions >= starts[:, None])).to(device))


def lengths_of(examples: Iterable[Example]) -> RowLengths:
    """Measure the longest prompt and the longest answer of the rows, in tokens."""
    sizes = [(example.completion_start, len(example.ids) - example.completion_start) for example in examples]
    return RowLengths(max(prompt for prompt, _ in sizes), max(answer for _, answer in sizes))


def stream_seed(seed: int, *stream: int) -> int:
    """Derive a 63-bit seed from the job's seed and the numbers that name a random stream."""
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0]) >> 1


def generator(seed: int, *stream: int) -> torch.Generator:
    """Create a CPU generator for one random stream."""
    return torch.Generator().manual_seed(stream_seed(seed, *stream))


def batch_indices(seed: int, step: int, rows: int, batch_size: int) -> list[int]:
    """Choose the rows of step ``step`` (from 0); epochs follow without a gap, each with its own shuffle."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    epochs = {
        epoch: np.random.default_rng([seed, epoch]).permutation(rows)
        for epoch in {position // rows for position in positions}
    }
    return [int(epochs[position // rows][position % rows]) for position in positions]


def by_length(examples: Sequence[Example], batch_size: int) -> Iterator[list[int]]:
    """Yield batches of indices for a pass without training; similar lengths together need little padding."""
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].ids))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def require_rows(kept: Sequence[object], total: int, param: str) -> None:
    """Refuse a data set if truncation left none of its rows.

    Raises:
        InvalidDataset: With ``param``, the spec's field.
    """
    if not kept:
        raise InvalidDataset(f"all {total} rows are cut before their completion by max_length", param=param)


def report_rows(context: RecipeContext, role: str, rows: Sequence[Sequence[Example]], total: int) -> None:
    """Log the lengths of a data set's rows, and how many rows truncation dropped, to the job's events.

    Args:
        context: The job's.
        role: The data set's role.
        rows: The examples of each row that is left.
        total: The number of rows before truncation.
    """
    if not rows:
        return
    lengths = [len(example.ids) for row in rows for example in row]
    tokens = {"min": min(lengths), "mean": round(sum(lengths) / len(lengths), 2), "max": max(lengths)}
    lost = total - len(rows)
    data = {"role": role, "rows": total, "fully_truncated": lost, "tokens": tokens}
    if lost:
        context.log(f"{lost} of {total} {role} have no answer within max_length", "warn", data)
    else:
        context.log(f"{total} {role} of {tokens['min']} to {tokens['max']} tokens", "info", data)
