"""The recipes, one module per job kind, imported on demand: listing them needs no torch."""

from __future__ import annotations

from importlib import import_module

from armature_worker.context.ports import Recipe

RECIPES = {
    "base_model.import": "armature_worker.recipes.base_model",
    "harm_vector.build": "armature_worker.recipes.harm_vector",
    "harm_vector.sweep": "armature_worker.recipes.harm_vector_sweep",
    "arm.train": "armature_worker.recipes.arm",
    "arm.extend": "armature_worker.recipes.arm_extend",
    "arm.export": "armature_worker.recipes.arm_export",
    "arm.import": "armature_worker.recipes.arm_import",
    "checkpoint.export": "armature_worker.recipes.checkpoint_export",
    "evaluation.run": "armature_worker.recipes.evaluation",
    "pairs.generate": "armature_worker.recipes.pairs",
}
"""Job kind -> module."""


def load_recipe(kind: str) -> Recipe:
    """Import the recipe of a job kind and return its ``run`` function."""
    run: Recipe = import_module(RECIPES[kind]).run
    return run
