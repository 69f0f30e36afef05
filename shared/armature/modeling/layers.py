"""The attention and MLP projections of a causal language model, found whatever their names.

Harm vectors select these projections and adapters attach to them, never embeddings, the output head or norms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from armature.errors import InvalidCheckpoint, InvalidRequest


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the name of the stack of decoder layers, and the stack.

    It is the first module list whose length is the config's number of layers.

    Raises:
        InvalidCheckpoint: There is none.
    """
    depth = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise InvalidCheckpoint("the architecture has no stack of decoder layers", param="config.json")


def decoder_linears(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """Return the linear projections inside the decoder layers by module name, in the model's order."""
    stack, layers = decoder_layers(model)
    return {
        f"{stack}.{name}": module for name, module in layers.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }


def is_attention(name: str) -> bool:
    """Tell whether the projection ``name`` belongs to an attention block; all others are the MLP's."""
    return bool(_ATTENTION.search(name))


def linear_size(module: nn.Linear | Conv1D) -> tuple[int, int]:
    """Return (in, out) of a projection; Conv1D stores its weight transposed."""
    return (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (module.nx, module.nf)


def chosen_linears(
    model: PreTrainedModel, targets: str, layers: str | Collection[int], param: str = "spec.selection"
) -> dict[str, nn.Module]:
    """Select from :func:`decoder_linears` by kind of block and by layer.

    Args:
        model: The model.
        targets: ``attention``, ``mlp`` (all but attention) or ``both``.
        layers: ``all``, ``upper_half`` (the upper ceil(L / 2)), or layer numbers from 0.
        param: The field of the spec that has both choices, for errors.

    Raises:
        InvalidRequest: The model lacks a layer, or the selection is empty.
    """
    stack, modules = decoder_layers(model)
    depth = len(modules)
    numbers = (
        {"all": range(depth), "upper_half": range(depth // 2, depth)}[layers] if isinstance(layers, str) else layers
    )
    if missing := sorted(set(numbers) - set(range(depth))):
        raise InvalidRequest(f"the model has layers 0 to {depth - 1}, not {missing[0]}", param=f"{param}.layers")
    chosen = {}
    for name, module in decoder_linears(model).items():
        number, _, path = name.removeprefix(f"{stack}.").partition(".")
        if int(number) in numbers and _TARGETS[targets](is_attention(path)):
            chosen[name] = module
    if not chosen:
        raise InvalidRequest(f"the chosen layers have no {targets} projections", param=f"{param}.targets")
    return chosen


_ATTENTION = re.compile(r"attn|attention")
_TARGETS: dict[str, Callable[[bool], bool]] = {
    "attention": lambda attention: attention,
    "mlp": lambda attention: not attention,
    "both": lambda attention: True,
}
