"""The attention and MLP projections of a causal language model, found whatever their names.

Harm vectors select these projections and adapters attach to them, never embeddings, the output head or norms. The
experts of a mixture are projections too: transformers holds all experts of a layer in one parameter of three dimensions
(experts, out, in), which no module of :func:`decoder_linears` has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd
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


def decoder_weights(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the weights of all projections in the decoder layers, experts too, by name."""
    stack, layers = decoder_layers(model)
    return {
        f"{stack}.{name}.{leaf}": module.get_parameter(leaf)
        for name, module in layers.named_modules()
        for leaf in _projection_weights(module)
    }


def _projection_weights(module: nn.Module) -> Iterator[str]:
    if isinstance(module, nn.Linear | Conv1D):
        yield "weight"
    elif not isinstance(module, _ConvNd):  # a kernel over positions has three dimensions too
        yield from (leaf for leaf, parameter in module.named_parameters(recurse=False) if parameter.dim() == _EXPERTS)


def weight_share(model: PreTrainedModel, names: Iterable[str]) -> float:
    """Return the share of the decoder layers' matrices, routers included, that ``names`` make up."""
    stack, layers = decoder_layers(model)
    sizes = {f"{stack}.{name}": p.numel() for name, p in layers.named_parameters() if p.dim() > 1}
    return sum(sizes[name] for name in set(names)) / sum(sizes.values())


def is_attention(name: str) -> bool:
    """Tell whether the projection ``name`` belongs to an attention block; all others are the MLP's."""
    return bool(_ATTENTION.search(name))


def linear_size(module: nn.Linear | Conv1D) -> tuple[int, int]:
    """Return (in, out) of a projection; Conv1D stores its weight transposed."""
    return (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (module.nx, module.nf)


def chosen_weights(
    model: PreTrainedModel, targets: str, layers: str | Collection[int], param: str = "spec.selection"
) -> dict[str, nn.Parameter]:
    """Select from :func:`decoder_weights` by kind of block and by layer.

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
    for name, weight in decoder_weights(model).items():
        number, _, path = name.removeprefix(f"{stack}.").partition(".")
        if int(number) in numbers and _TARGETS[targets](is_attention(path)):
            chosen[name] = weight
    if not chosen:
        raise InvalidRequest(f"the chosen layers have no {targets} projections", param=f"{param}.targets")
    return chosen


def chosen_linears(
    model: PreTrainedModel, targets: str, layers: str | Collection[int], param: str = "spec.selection"
) -> dict[str, nn.Module]:
    """Select linear projections by name, as :func:`chosen_weights`, for adapters that wrap linear modules.

    Raises:
        InvalidRequest: As :func:`chosen_weights`; or the choice has experts, which an adapter would leave out.
    """
    weights = chosen_weights(model, targets, layers, param)
    if experts := next((name for name, weight in weights.items() if weight.dim() == _EXPERTS), None):
        reason = f"{experts} holds a layer's experts in one parameter, which adapters of linear modules do not reach"
        raise InvalidRequest(f"{reason}; set {param}.targets to attention", param=f"{param}.targets")
    names = (name.removesuffix(".weight") for name in weights)
    return {name: model.get_submodule(name) for name in names}


def split_experts(weights: Iterable[str], model: PreTrainedModel) -> tuple[list[str], list[str]]:
    """Split parameters into the names of linear modules and the names of experts' parameters."""
    linears = decoder_linears(model)
    modules = [name.removesuffix(".weight") for name in weights if name.removesuffix(".weight") in linears]
    return modules, [name for name in weights if name.removesuffix(".weight") not in linears]


_EXPERTS = 3
"""Dimensions of a parameter that holds experts: (experts, out, in), or (experts, in, out) in some families."""
_ATTENTION = re.compile(r"attn|attention")
_TARGETS: dict[str, Callable[[bool], bool]] = {
    "attention": lambda attention: attention,
    "mlp": lambda attention: not attention,
    "both": lambda attention: True,
}
