"""Where a causal language model keeps its attention and MLP projections, whatever its family names them.

Harm vectors select these and adapters attach to them; embeddings, the output head and norms are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from armature.errors import InvalidCheckpoint, InvalidRequest


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name of the stack of decoder layers, and the stack: the module list as long as the config says.

    Raises:
        InvalidCheckpoint: There is none.
    """
    depth = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise InvalidCheckpoint("the architecture has no stack of decoder layers", param="config.json")


def decoder_linears(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """The linear projections inside the decoder layers by their module names, in the model's order."""
    stack, layers = decoder_layers(model)
    return {
        f"{stack}.{name}": module for name, module in layers.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }


def is_attention(name: str) -> bool:
    """Whether a projection of that module name belongs to an attention block; what does not is the MLP's."""
    return bool(_ATTENTION.search(name))


def linear_size(module: nn.Linear | Conv1D) -> tuple[int, int]:
    """(in, out) of a projection, whichever way round its family stores the weight."""
    return (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (module.nx, module.nf)


def chosen_linears(
    model: PreTrainedModel, targets: str, layers: str | Collection[int], param: str = "spec.selection"
) -> dict[str, nn.Module]:
    """Those of :func:`decoder_linears` in the chosen blocks of the chosen layers.

    Args:
        model: The model.
        targets: ``attention``, ``mlp`` (what is not attention) or ``both``.
        layers: ``all``, ``upper_half`` (the upper ceil(L / 2)), or layer numbers from 0.
        param: The field of the spec that holds both choices, for errors.

    Raises:
        InvalidRequest: A layer that the model does not have, or nothing is left.
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
