"""An example of every stage that a profile version may have, other than its defaults. A new stage needs one here."""

from __future__ import annotations

from typing import Any

from armature.contracts.profiles import Stages

STAGE_EXAMPLES: dict[str, dict[str, Any]] = {
    "sda": {
        "instruction": "Be kind.",
        "strength": 2.0,
        "adaptive_temperature": None,
        "bounds": {"max_strength": 4.0, "own_instruction": False},
    },
}
assert STAGE_EXAMPLES.keys() == Stages.model_fields.keys(), "each stage has one example here"


def as_evaluated(stage: str) -> dict[str, Any]:
    """The example as an evaluation has it: bounds are for requests."""
    return {name: value for name, value in STAGE_EXAMPLES[stage].items() if name != "bounds"}
