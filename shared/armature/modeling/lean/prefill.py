"""Prompts of new requests on the lean back end, computed piece by piece in a cache of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from armature.modeling.lean.model import LeanModel, Streams
from armature.modeling.rows import RowRequest, TwinLogits


class LeanPrefill:
    """Implements :class:`armature.modeling.rows.Prefill`.

    Rows 0 to n - 1 of the caches are the safe streams of the n requests, those after them the ARM streams of the
    ``guided`` ones. All rows advance by the same columns; one whose prompt has ended computes what nobody reads.
    """

    def __init__(self, model: LeanModel, requests: Sequence[RowRequest], vocab_size: int | None) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self.lengths = [len(request.prompt) for request in requests]
        """Of the prompts."""
        self.cores = [_mix(model, request.preference) for request in requests]
        """Of each request's preference (C,), if it is guided."""
        self.guided = [index for index, cores in enumerate(self.cores) if cores is not None]
        self.lower, self.upper = model.new_caches()
        self._width = max(self.lengths)
        self._done = 0
        self._tokens = self._tensor([[*prompt, *[0] * (self._width - len(prompt))] for prompt, _ in requests])
        self._streams = Streams.of(model, self.guided, self.cores)
        self._ends: dict[int, Tensor] = {}

    @property
    def remaining(self) -> int:
        """How many columns are still to be computed."""
        return self._width - self._done

    @property
    def logits(self) -> TwinLogits:
        """For the first new token of each request."""
        hidden = torch.stack([self._ends[row] for row in range(len(self._ends))])
        arm = arm_index(self._model, [cores is not None for cores in self.cores])
        return twin_logits(self._model, hidden, len(self.lengths), arm, self._vocab_size)

    def advance(self, tokens: int) -> None:
        """Compute the next columns, together at most so many tokens."""
        safe, rows, begin = len(self.lengths), len(self.lengths) + len(self.guided), self._done
        end = begin + min(self.remaining, max(1, tokens // rows))
        self.lower.reserve(safe, end)
        self.upper.reserve(rows, end)
        lengths = torch.full((rows,), begin, device=self._model.device)
        attend = (
            self.lower.extend(lengths[:safe], begin, begin, end - begin),
            self.upper.extend(lengths, begin, begin, end - begin),
        )
        positions = torch.arange(begin, end, device=self._model.device)[None]
        hidden = self._model.forward(self._tokens[:, begin:end], positions, self._streams, attend)
        for row, index in enumerate([*range(safe), *self.guided]):
            if begin < self.lengths[index] <= end:
                self._ends[row] = hidden[row, self.lengths[index] - 1 - begin]
        self._done = end

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._model.device)


def arm_index(model: LeanModel, guided: Sequence[bool]) -> Tensor | slice:
    """Each request's ARM stream among all safe ones and, after them, those of the guided: a slice where possible."""
    count = len(guided)
    if all(guided) or not any(guided):
        return slice(count, 2 * count) if any(guided) else slice(count)
    places = iter(range(count, 2 * count))
    index = [next(places) if is_guided else slot for slot, is_guided in enumerate(guided)]
    return torch.tensor(index, dtype=torch.long, device=model.device)


def twin_logits(
    model: LeanModel, hidden: Tensor, requests: int, arm: Tensor | slice, vocab_size: int | None
) -> TwinLogits:
    """``hidden`` (rows, hidden) are the safe streams of the requests, then ARM streams; ``arm`` is each request's."""
    logits = model.logits(hidden)[:, :vocab_size].float()
    return TwinLogits(logits[:requests], logits[arm])


def _mix(model: LeanModel, preference: Sequence[float] | None) -> Tensor | None:
    if preference is None:
        return None
    return model.mix(torch.tensor([preference], dtype=torch.float32, device=model.device))[0]
