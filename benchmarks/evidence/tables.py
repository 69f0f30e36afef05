"""The questions as data.

A row of a table is the demo's jobs with a few fields of their specs changed, or a point of a sweep over its base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from armature.contracts.specs.harm_vector_sweep import SweepGrid
from armature_cli.demo import plan
from armature_worker.evaluation.sweep_points import CONTROLS, Source, grid_sources

Changes = Mapping[str, Any]
"""Fields of a spec and their new values, nested as the spec is."""

WITHOUT_SAFE_SET = "_no_safe_set"
"""Suffix of figures that were measured without a safe set."""


@dataclass(frozen=True)
class Variation:
    """Differences to the demo's jobs; a vector or an ARM that is None is left out."""

    name: str
    harm_vector: Changes | None = field(default_factory=dict)
    arm: Changes | None = field(default_factory=dict)
    evaluation: Changes = field(default_factory=dict)
    """Changes to the evaluation of the guided subject."""
    scale: float = plan.HARM_SCALE
    """Scale at which the harm vector is subtracted."""
    guard: bool = False
    """Whether the harm vector is guarded by benign pairs of the training data."""


@dataclass(frozen=True)
class Edit:
    """A point of the sweep over :data:`SWEPT`; without a source, the base."""

    name: str
    source: Source | None = None
    scale: float = 0.0
    control: str | None = None
    """Name of one of the knee's controls."""
    confirms: bool = False
    """Whether this is the knee, evaluated on prompts that the sweep has not seen."""


@dataclass(frozen=True)
class Table:
    """A question, the figures that answer it, and the variations to compare."""

    question: str
    columns: tuple[str, ...]
    variations: tuple[Variation | Edit, ...]

    @property
    def attacks(self) -> bool:
        """Whether a column needs attacks on the guided subject."""
        return not set(_LEAK).isdisjoint(self.columns)


_CONTROL = ("one_hot_gain", "diagonal_dominance", "spearman_mean", "mip_gain", "worst_drop", "degenerate")
_LEAK = (f"asr_help{WITHOUT_SAFE_SET}", f"asr_uniform{WITHOUT_SAFE_SET}", "asr_help", "asr_uniform")
_EDIT = ("asr", "asr_or_degenerate", "asr_or_degenerate_high", "nll_rise", "nll_rise_high", "edit_norm", "is_knee")
_VECTOR = ("asr_backbone", "nll_rise", "degenerate_backbone", "certified_delta")


def _arm(name: str, /, weight: float | None = None, **changes: Any) -> Variation:
    evaluation = {} if weight is None else {"guidance": {"guidance_weight": weight}}
    return Variation(name, arm=changes, evaluation=evaluation)


def _vector(name: str, /, scale: float = plan.HARM_SCALE, guard: bool = False, **selection: Any) -> Variation:
    return Variation(name, {"selection": selection}, None, scale=scale, guard=guard)


def _loss(form: str, beta: float, weight: float) -> Variation:
    return _arm(f"{form}, beta {beta:g}, w {weight:g}", weight, loss={"form": form, "beta": beta})


SWEPT = SweepGrid(densities=[0.01, 0.05, 0.1, 1.0], scales=[1.0, 2.0, 3.0, 4.0], layers=["all", "upper_half"])


def _edits() -> Iterator[Edit]:
    yield Edit("no edit")
    for source in grid_sources(SWEPT):
        for scale in SWEPT.scales:
            layers = str(source.layers).replace("_", " ")
            yield Edit(f"{source.density:.0%} of {layers}, scale {scale:g}", source, scale)
    for name in CONTROLS:
        yield Edit(f"the knee's control {name}", control=name)
    yield Edit("the knee, on other prompts", confirms=True)


TABLES: dict[str, Table] = {
    "conflict": Table(
        "Which conflict method, on which parameters?",
        (*_CONTROL, "cosine_shared", "conflicts_shared", "cosine_conditioned", "conflicts_conditioned"),
        (
            _arm("sum"),
            *(
                _arm(f"{method}, {scope}", conflict={"method": method, "scope": scope})
                for scope in ("all", "shared")
                for method in ("pcgrad", "aligned", "upgrad", "cagrad", "mgda")
            ),
        ),
    ),
    "backbone": Table(
        "Does an ARM bring harm back, on the safe base and on the plain one?",
        ("asr_backbone", *_LEAK, *_CONTROL),
        (
            _arm("safe base"),
            # the width certified for a harmful base is 0, which leaves one token
            Variation("plain base", None, evaluation={"guidance": {"safe_set_delta": plan.WIDEST_SAFE_SET}}),
        ),
    ),
    "layers": Table(
        "Does the adapter need every layer?",
        _CONTROL,
        (_arm("upper half"), _arm("all layers", adapter={"layers": "all"})),
    ),
    "adapter": Table(
        "Which kind of adapter?",
        (*_CONTROL, "weakest_gain", "kl_to_safe"),
        (
            _arm("pblora, rank 4 + 4"),
            *(_arm(f"{kind}, rank 8", adapter={"kind": kind, "alpha": 16.0}) for kind in ("modulated", "scaled")),
        ),
    ),
    "targets": Table(
        "Which linear layers should the adapter be on?",
        _CONTROL,
        (
            _arm("attention and MLP"),
            _arm("MLP", adapter={"targets": "mlp"}),
            _arm("attention", adapter={"targets": "attention"}),
            _arm("attention, all layers", adapter={"targets": "attention", "layers": "all"}),
        ),
    ),
    "loss": Table(
        "Which loss form, decoded as it was trained, and how strongly?",
        (*_CONTROL, "kl_to_safe"),
        (
            *(_loss("reference", 2.0, weight) for weight in (1.0, 2.0, 3.0)),
            *(_loss("sum", 0.1, weight) for weight in (0.5, 1.0)),
            *(_loss("mean", 20.0, weight) for weight in (1.0, 2.0)),
            *(_loss("reference", 0.5, weight) for weight in (0.5, 1.0)),
        ),
    ),
    "preferences": Table(
        "A preference for each row of a step, or one for all?",
        (*_CONTROL, "weakest_gain"),
        (_arm("one per row"), _arm("one per step", preferences={"per": "step"})),
    ),
    "guard": Table(
        "Does the capability guard preserve capability?",
        _VECTOR,
        tuple(
            _vector(f"{'guarded' if guard else 'plain'}, scale {scale:g}", scale, guard, density=0.1)
            for scale in (3.0, 4.0, 6.0)
            for guard in (False, True)
        ),
    ),
    "selection": Table(
        "Which entries of the harm vector carry it?",
        _VECTOR,
        (
            Variation("no vector", None, None),
            _vector("largest tenth (the demo's)"),
            _vector("largest tenth of each tensor", rule="per_tensor"),
            _vector("random tenth", rule="random"),
            _vector("largest tenth, values permuted", rule="permuted"),
            _vector("largest tenth, random signs", rule="random_sign"),
            _vector("upper half of the layers", layers="upper_half"),
            _vector("lower half of the layers", layers=[0, 1]),
            _vector("MLP", targets="mlp"),
            _vector("attention", targets="attention"),
        ),
    ),
    "sweep": Table(
        "Which edit does a sweep pick?",
        (*_EDIT, "certified_delta"),
        tuple(_edits()),
    ),
    "density": Table(
        "How many entries, subtracted how often?",
        _VECTOR,
        tuple(
            _vector(f"{density:.0%}, scale {scale:g}", scale, density=density)
            for density in (0.01, 0.05, 0.1, 1.0)
            for scale in (1.0, 3.0, 4.0)
        ),
    ),
}
"""Tables by name. A row that stands in two tables is computed once."""
