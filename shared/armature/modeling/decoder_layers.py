"""Where a causal language model keeps its attention and MLP projections, whatever its family names them.

Harm vectors select these and adapters attach to them; embeddings, the output head and norms are left alone.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from armature.errors import InvalidCheckpoint


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


def decoder_linears(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear projections inside the decoder layers by their module names, in the model's order."""
    stack, layers = decoder_layers(model)
    return {
        f"{stack}.{name}": module for name, module in layers.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
