"""Which rows of logits a step asks for, and how they become each request's streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from armature.algorithms.guided_decoding import Mixture
from armature.inference.runner import Read
from armature.inference.stream import Role


class StreamLogits(NamedTuple):
    """Next-token logits of S requests by stream, (S, V) each, in the dtype of the model.

    A request without a stream has its safe logits there; a table that no request needs is None.
    """

    safe: torch.Tensor
    """Of a request that only needs the combination of its streams: the combination, here and in ``arm``."""
    arm: torch.Tensor
    reference: torch.Tensor | None = None
    """Of the ARM's own model without its adapter; None: that is the safe model."""
    instructed: torch.Tensor | None = None
    measured: torch.Tensor | None = None
    """The safe logits of the combined requests whose divergence is measured (M, V), in their order."""

    def select(self, slots: slice, *, instructed: bool) -> StreamLogits:
        """Return the logits of some requests, without what is ``measured``.

        Args:
            slots: The requests.
            instructed: Whether one of them has an instructed stream; else that table is left out.
        """
        reference = None if self.reference is None else self.reference[slots]
        below_instruction = self.instructed[slots] if instructed and self.instructed is not None else None
        return StreamLogits(self.safe[slots], self.arm[slots], reference, below_instruction)


class Combination(NamedTuple):
    """How a request's safe and ARM streams are combined, and whether its safe logits are wanted as well."""

    mixture: Mixture
    measured: bool = False


@dataclass(frozen=True)
class ReadPlan:
    """A step's reads for S requests: one of each, then further streams by role, then what is measured.

    ``places`` are the reads of a role by request, the request's first read where it has none; a slice where they are
    consecutive, which copies nothing.
    """

    reads: list[Read]
    slots: int
    measured: int
    places: Mapping[Role, torch.Tensor | slice]

    @classmethod
    def of(
        cls, rows: Sequence[Mapping[Role, int]], combinations: Sequence[Combination | None], device: torch.device
    ) -> ReadPlan:
        """Plan the reads.

        Args:
            rows: Each request's row by role.
            combinations: How each request's streams are combined by the runner; None: they are read apart.
            device: Where the logits are.
        """
        pairs, places = list(zip(rows, combinations, strict=True)), dict[Role, torch.Tensor | slice]()
        reads = [Read(own["safe"]) if one is None else _combined(own, one.mixture) for own, one in pairs]
        for role in ("instructed", "reference", "arm"):
            separate = [slot for slot, (own, one) in enumerate(pairs) if one is None and role in own]
            begin, reads = len(reads), reads + [Read(rows[slot][role]) for slot in separate]
            if len(separate) == len(rows):
                places[role] = slice(begin, len(reads))
            elif separate:
                index = torch.arange(len(rows), device=device)
                index[separate] = torch.arange(begin, len(reads), device=device)
                places[role] = index
        measured = [Read(own["safe"]) for own, one in pairs if one and one.measured]
        return cls(reads + measured, len(rows), len(measured), places)

    def gather(self, logits: torch.Tensor) -> StreamLogits:
        """Sort the logits of the reads (N, V) by stream."""
        safe, by_role = logits[: self.slots], {role: logits[places] for role, places in self.places.items()}
        measured = logits[len(logits) - self.measured :] if self.measured else None
        return StreamLogits(
            safe, by_role.get("arm", safe), by_role.get("reference"), by_role.get("instructed"), measured
        )


def _combined(rows: Mapping[Role, int], mixture: Mixture) -> Read:
    """The safe stream is the ARM's reference: a runner that combines has both on one model."""
    return Read(rows["safe"], rows["arm"], mixture.safe + mixture.reference, mixture.arm)
