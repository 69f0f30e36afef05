"""A smaller ARM guides a bigger base: the base's rows in one model, the ARM's in another, token by token.

The ARM's model runs two streams per guided request, with the adapter and without, because the reference form compares
the ARM with what its own backbone says. Prompts may differ (each model has its own chat template); what follows them is
the same, so both speak the same token ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from armature.inference.runner import Mixed, Prefill, RowRequest, Rows, TwinLogits


class SeparateRows:
    """Implements :class:`armature.inference.runner.Rows` over those of two models.

    Args:
        base: Rows of the model that speaks, without an adapter.
        arm: Rows of the ARM's own model.
    """

    mixes = False
    """The two models' heads are not the same."""

    def __init__(self, base: Rows, arm: Rows) -> None:
        self._base = base
        self._arm = arm
        self._guided: list[bool] = []

    def __len__(self) -> int:
        """S: the requests that have rows."""
        return len(self._guided)

    def begin(self, requests: Sequence[RowRequest]) -> SeparatePrefill:
        """New requests; see :meth:`armature.inference.runner.Rows.begin`. Guided ones do not ask for every position."""
        guided = [request.preference is not None for request in requests]
        asked = [one._replace(prompt=one.arm_prompt or one.prompt) for one in requests if one.preference is not None]
        arm = self._arm.begin(asked) if asked else None
        base = self._base.begin([request._replace(preference=None) for request in requests])
        return SeparatePrefill(base, arm, guided)

    def join(self, prefill: Prefill) -> None:
        """Add new requests to both models' rows, or to neither's."""
        assert isinstance(prefill, SeparatePrefill)
        before = len(self._arm)
        if prefill.arm is not None:
            self._arm.join(prefill.arm)
        try:
            self._base.join(prefill.base)
        except BaseException:
            self._arm.keep(range(before))
            raise
        self._guided += prefill.guided

    def step(self, tokens: torch.Tensor, mixed: Sequence[Mixed | None] = ()) -> TwinLogits:
        """Feed each request's newest token (S,) to its streams and return the logits for the next one."""
        safe = self._base.step(tokens)
        return _merge(safe, self._arm.step(tokens[_where(self._guided)]) if any(self._guided) else None, self._guided)

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all requests but these, which move up in their order."""
        arm_slots = {slot: row for row, slot in enumerate(_where(self._guided))}
        self._base.keep(slots)
        self._arm.keep([arm_slots[slot] for slot in slots if self._guided[slot]])
        self._guided = [self._guided[slot] for slot in slots]


class SeparatePrefill:
    """Implements :class:`armature.inference.runner.Prefill`: the base's prompts, and the ARM's if it guides any."""

    def __init__(self, base: Prefill, arm: Prefill | None, guided: list[bool]) -> None:
        self.base = base
        self.arm = arm
        self.guided = guided

    @property
    def remaining(self) -> int:
        """How many positions the longest prompt still needs."""
        return max(self.base.remaining, self.arm.remaining if self.arm else 0)

    @property
    def logits(self) -> TwinLogits:
        """For the first new token of each request."""
        return _merge(self.base.logits, self.arm.logits if self.arm else None, self.guided)

    @property
    def newest(self) -> TwinLogits:
        """After each of the newest positions of the one unguided request."""
        assert self.arm is None, "positions of two models do not go together"
        return self.base.newest

    def advance(self, tokens: int) -> int:
        """Compute the next positions, shared out between the models."""
        pending = [prefill for prefill in (self.base, self.arm) if prefill is not None and prefill.remaining]
        return sum(prefill.advance(max(1, tokens // len(pending))) for prefill in pending)


def _where(guided: list[bool]) -> list[int]:
    """The slots of the guided requests: the ARM's rows are in their order."""
    return [slot for slot, is_guided in enumerate(guided) if is_guided]


def _merge(base: TwinLogits, arm: TwinLogits | None, guided: list[bool]) -> TwinLogits:
    if arm is None:
        return TwinLogits(base.safe, base.safe)
    if all(guided):
        return TwinLogits(base.safe, arm.arm, arm.safe)
    slots, safe = torch.tensor(_where(guided), dtype=torch.long, device=base.safe.device), base.safe.float()
    return TwinLogits(base.safe, *(safe.index_copy(0, slots, table.float()) for table in (arm.arm, arm.safe)))
