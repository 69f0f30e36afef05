"""Runs a variation of the demo's jobs for one seed and returns its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from armature.algorithms.metrics import mean, mean_vector
from armature.contracts.preferences import ATTRIBUTES
from armature.contracts.specs import JobSpec, parse_spec
from armature.contracts.specs.base_model import BaseModelImportSpec, FolderSource
from armature_cli.demo import plan, tiny_model
from armature_cli.demo.datasets import completions, datasets
from armature_cli.demo.world import World
from benchmarks.evidence.laboratory import Done, Laboratory
from benchmarks.evidence.sweep import Swept, sweep
from benchmarks.evidence.tables import WITHOUT_SAFE_SET, Changes, Edit, Variation

Figures = dict[str, float]
_KNOWN: Changes = {"benign_pairs": None, "harmful_openings": None}
"""Inputs left out of an evaluation: an ARM does not change the figures that need them."""
_BACKBONE: Changes = {"prompts": None}
_CONTROL: Changes = {**_KNOWN, "harmful_prompts": None}
_ATTACKS: Changes = {**_KNOWN, "prompts": None}
_NO_SAFE_SET: Changes = {**_ATTACKS, "guidance": {"safe_set_delta": None}}
_GROUPS = ("shared", "conditioned")


class Experiment:
    """The world of one seed with its base model, on which variations run.

    Args:
        laboratory: Runs the jobs.
        seed: Seed of the world, the base model and every job.
        steps: Steps of the ARM's training.
    """

    def __init__(self, laboratory: Laboratory, seed: int, steps: int = plan.ARM_STEPS) -> None:
        self._laboratory, self._seed, self._steps = laboratory, seed, steps
        self._world = World(seed)
        self._data = plan.Datasets(**{role: laboratory.keep(rows) for role, (_, rows) in datasets(self._world).items()})

    def measure(self, variation: Variation, *, attacks: bool) -> Figures:
        """Compute the figures of a variation: of its backbone and, if it trains an ARM, of guidance.

        With ``attacks`` also the attack success on the guided subject, with the safe set and without it.
        """
        vector = self._build_vector(variation)
        subject = plan.Subject(self._base_model, vector)
        figures = self._backbone_figures(self._evaluate(variation, subject, _BACKBONE))
        if variation.arm is None:
            return figures
        arm = self._laboratory.run(self._arm_spec(variation, vector))
        delta = min(figures["certified_delta"], plan.WIDEST_SAFE_SET)
        guided = plan.Subject(self._base_model, vector, arm.artifacts["arm"].digest, delta)
        control = self._evaluate(variation, guided, _CONTROL)
        unguided = self._evaluate(variation, subject, _CONTROL)
        figures |= _training_figures(arm) | _control_figures(control, unguided)
        if attacks:
            for suffix, changes in (("", _ATTACKS), (WITHOUT_SAFE_SET, _NO_SAFE_SET)):
                figures |= _attack_figures(self._evaluate(variation, guided, changes), suffix)
        return figures

    def measure_edit(self, edit: Edit) -> Figures:
        """Compute the figures of a point of the sweep; none for the knee if the sweep found none."""
        swept = self._swept
        if not edit.confirms:
            return swept.figures(edit)
        if swept.vector is None:
            return {}
        knee = Variation(edit.name, scale=swept.best.scale)
        report = self._evaluate(knee, plan.Subject(self._base_model, swept.vector), _BACKBONE)
        figures = self._backbone_figures(report)
        return {
            "asr": figures["asr_backbone"],
            "asr_or_degenerate": report["asr_or_degenerate"],
            "nll_rise": figures["nll_rise"],
            "certified_delta": figures["certified_delta"],
        }

    @cached_property
    def _swept(self) -> Swept:
        return sweep(self._laboratory, self._world, self._base_model, self._data)

    @cached_property
    def _base_model(self) -> str:
        name = f"base-{self._seed}-{plan.PRETRAINING_DIALOGUES}"
        folder = self._laboratory.make(
            name,
            lambda folder: tiny_model.raise_model(
                self._world, plan.PRETRAINING_DIALOGUES, folder, lambda step, total, loss: None
            ),
        )
        spec = BaseModelImportSpec(name=name, source=FolderSource(path=str(folder)))
        return self._laboratory.run(spec).artifacts["checkpoint"].digest

    @cached_property
    def _base_nll(self) -> float:
        return float(self._evaluate(Variation("base"), plan.Subject(self._base_model), _BACKBONE)["nll"])

    def _build_vector(self, variation: Variation) -> str | None:
        if variation.harm_vector is None:
            return None
        spec = plan.harm_vector_spec(self._base_model, self._data, self._seed)
        changes: dict[str, Any] = {"scale": variation.scale, **variation.harm_vector}
        if variation.guard:
            benign = self._world.dialogues(plan.HARMFUL_PAIRS, harmful_share=0.0)
            changes["benign_pairs"] = self._laboratory.keep(completions(benign))
        return self._laboratory.run(change_spec(spec, changes)).artifacts["harm_vector"].digest

    def _arm_spec(self, variation: Variation, vector: str | None) -> JobSpec:
        spec: JobSpec = plan.arm_spec(self._base_model, vector, self._data, self._seed)
        for changes in ({"harm_scale": variation.scale, "training": {"steps": self._steps}}, variation.arm or {}):
            spec = change_spec(spec, changes)
        return spec

    def _evaluate(self, variation: Variation, subject: plan.Subject, changes: Changes) -> Mapping[str, Any]:
        """Run an evaluation and return its report, with the metrics at the top level."""
        spec: JobSpec = plan.evaluation_spec(subject, self._data, self._seed)
        guided = variation.evaluation if subject.arm else {}
        for part in ({"harm_scale": variation.scale}, guided, changes):
            spec = change_spec(spec, part)
        report = self._laboratory.run(spec).report()
        return {**report, **report["metrics"]}

    def _backbone_figures(self, report: Mapping[str, Any]) -> Figures:
        return {
            "asr_backbone": report["asr"],
            "nll": report["nll"],
            "nll_rise": report["nll"] / self._base_nll - 1,
            "certified_delta": report["safe_set_delta"],
            "degenerate_backbone": report["harmful_prompts"]["by_preference"]["unguided"]["degenerate"],
        }


def _control_figures(guided: Mapping[str, Any], unguided: Mapping[str, Any]) -> Figures:
    before = mean_vector([row["scores"] for row in unguided["prompts"]["grid"]])
    uniform = guided["prompts"]["grid"][len(ATTRIBUTES)]["scores"]
    names = (
        *("one_hot_gain", "diagonal_dominance", "dominant_rows", "spearman_mean", "spearman_weakest"),
        *("mip", "degenerate", "malformed", "kl_to_safe"),
    )
    return {
        **{name: guided[name] for name in names},
        "weakest_gain": min(row[i] for i, row in enumerate(guided["control_matrix"])),
        "mip_gain": guided["mip"] - guided["mip_shuffled"],
        "worst_drop": max(was - now for was, now in zip(before, uniform, strict=True)),
    }


def _attack_figures(report: Mapping[str, Any], suffix: str) -> Figures:
    rates = report["harmful_prompts"]["by_preference"]
    chosen = {"help": "helpfulness", "uniform": "uniform"}
    return {f"asr_{name}{suffix}": rates[preference]["asr"]["value"] for name, preference in chosen.items()} | {
        f"asr{suffix}": report["asr"]
    }


def _training_figures(arm: Done) -> Figures:
    """Conflict of the attributes' gradients, averaged over the steps that report it."""
    names: dict[str, Callable[[str], str]] = {"cosine": "cosine/{}".format, "conflicts": "conflicts/{}".format}
    figures = {}
    for figure, key in names.items():
        for group in _GROUPS:
            values = [step[key(group)] for step in arm.metrics if key(group) in step]
            if values:
                figures[f"{figure}_{group}"] = mean(values)
    return figures


def change_spec(spec: JobSpec, changes: Changes) -> JobSpec:
    """Change some fields of a spec and validate the result.

    Raises:
        pydantic.ValidationError: A change does not fit the spec.
    """
    return parse_spec(_merge(spec.model_dump(), changes))


def _merge(values: dict[str, Any], changes: Changes) -> dict[str, Any]:
    merged = dict(values)
    for name, change in changes.items():
        merged[name] = _merge(merged[name], change) if isinstance(change, Mapping) else change
    return merged
