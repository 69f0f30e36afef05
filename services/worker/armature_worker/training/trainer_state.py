"""The state of a training run: trained parameters and AdamW's moments (safetensors), the step (JSON).

A resumed run needs no more to be bit-identical: batches, preferences and learning rates are functions of (seed, step).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

TENSORS, POSITION = "training_state.safetensors", "training_state.json"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def save_trainer_state(
    folder: Path, step: int, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW
) -> None:
    """Write the state after ``step`` steps into ``folder``."""
    folder.mkdir(exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter.{name}"] = parameter.detach()
        for moment, value in optimizer.state[parameter].items():
            tensors[f"{moment}.{name}"] = value
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
    (folder / POSITION).write_text(json.dumps({"step": step}))


@torch.no_grad()
def load_trainer_state(folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW) -> int:
    """Restore ``parameters`` and the optimizer's moments from ``folder``; return the number of steps done."""
    tensors = load_file(folder / TENSORS)
    for name, parameter in parameters.items():
        parameter.copy_(tensors[f"parameter.{name}"])
        optimizer.state[parameter] = {
            moment: tensors[f"{moment}.{name}"].to("cpu" if moment == "step" else parameter.device)
            for moment in _MOMENTS
        }
    step: int = json.loads((folder / POSITION).read_text())["step"]
    return step
