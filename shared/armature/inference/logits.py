"""Which rows of logits a step asks for, and how they become each request's streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from armature.algorithms.guided_decoding import Mixture
from armature.inference.runner import Read
from armature.inference.stream import Role

Places = torch.Tensor | slice
"""Rows of a table; a slice where they are consecutive, which copies nothing."""


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
        """Return those of some requests, whether any of which has an ``instructed`` stream; no ``measured`` ones."""
        return StreamLogits(
            self.safe[slots],
            self.arm[slots],
            None if self.reference is None else self.reference[slots],
            self.instructed[slots] if instructed and self.instructed is not None else None,
        )


class Combination(NamedTuple):
    """How a request's safe and ARM streams are combined, and whether its safe logits are wanted as well."""

    mixture: Mixture
    measured: bool = False


@dataclass(frozen=True)
class ReadPlan:
    """The reads of a step for S requests, and where each of them finds its streams among the results."""

    reads: list[Read]
    safe: Places
    arm: Places
    reference: Places | None
    instructed: Places | None
    measured: Places | None

    @classmethod
    def of(
        cls,
        rows: Sequence[Mapping[Role, int]],
        combinations: Sequence[Combination | None],
        device: torch.device,
    ) -> ReadPlan:
        """Plan the reads: contexts in the requests' order, then references, ARM streams, and measured safe logits.

        Args:
            rows: Each request's row by role.
            combinations: How each request's streams are combined by the runner; None: they are read apart.
            device: Where the logits are.
        """
        reads = list[Read]()

        def read(one: Read) -> int:
            reads.append(one)
            return len(reads) - 1

        safe, instructed = list[int](), list[int]()
        for own, combination in zip(rows, combinations, strict=True):
            safe.append(read(Read(own["safe"]) if combination is None else _combined(own, combination.mixture)))
            instructed.append(read(Read(own["instructed"])) if "instructed" in own else safe[-1])

        def read_apart(role: Role) -> list[int]:
            apart = [combination is None and role in own for own, combination in zip(rows, combinations, strict=True)]
            return [
                read(Read(own[role])) if is_apart else place
                for own, place, is_apart in zip(rows, safe, apart, strict=True)
            ]

        has_reference = any("reference" in own for own in rows)
        reference = read_apart("reference") if has_reference else None
        arm = read_apart("arm")
        measured = [
            read(Read(own["safe"]))
            for own, combination in zip(rows, combinations, strict=True)
            if combination and combination.measured
        ]
        return cls(
            reads,
            _places(safe, device),
            _places(arm, device),
            None if reference is None else _places(reference, device),
            _places(instructed, device) if any("instructed" in own for own in rows) else None,
            _places(measured, device) if measured else None,
        )

    def gather(self, logits: torch.Tensor) -> StreamLogits:
        """Sort the logits of the reads (N, V) by stream."""
        optional = (self.reference, self.instructed, self.measured)
        return StreamLogits(
            logits[self.safe], logits[self.arm], *(None if places is None else logits[places] for places in optional)
        )


def _combined(rows: Mapping[Role, int], mixture: Mixture) -> Read:
    """The safe stream is the ARM's reference: a runner that combines has both on one model."""
    return Read(rows["safe"], rows["arm"], mixture.safe + mixture.reference, mixture.arm)


def _places(rows: Sequence[int], device: torch.device) -> Places:
    if list(rows) == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return torch.tensor(rows, dtype=torch.long, device=device)
