"""A frozen backbone cut over the processes of a group (FSDP2): each holds its share, and one layer in full at a time.

The model is built without memory and every process reads its tensors one by one, keeping its own rows of each; so no
process ever holds more than its share and the largest tensor. Adapters stay whole on every process: they are attached
afterwards, and :func:`shard_rest` leaves them out.

Decoder layers are units of their own, gathered before their forward pass and again before their backward pass; so are
the embeddings, with the output head where the two are tied.
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from armature.algorithms.task_vectors import SparseVector, check_fit, check_scale, subtract_block
from armature.algorithms.tensor_sources import blocks
from armature.errors import AdapterBaseMismatch, InvalidRequest
from armature.modeling.checkpoints.folder import Checkpoint, open_checkpoint
from armature.modeling.checkpoints.safetensors import TORCH_DTYPES, read_part
from armature.modeling.checkpoints.task_vector import read_task_vector
from armature.modeling.layers import decoder_layers


def load_sharded_model(
    folder: Path, task_vector: Path | None, scale: float, *, device: str, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """This process's shares of ``theta_b - scale * v``, in the stored dtype unless another is asked for, frozen.

    Every process of the group calls this at the same time, with ``device`` its own.

    Raises:
        InvalidRequest: The architecture renames or merges its tensors as it loads them: it can not be read in shares.
        AdapterBaseMismatch: The vector was made from a model of other tensors.
    """
    checkpoint = open_checkpoint(folder)
    model = _build_without_memory(checkpoint, dtype)
    if missing := sorted(dict(model.named_parameters()).keys() - checkpoint.tensors.keys()):
        raise InvalidRequest(f"this architecture can not be sharded: no tensor is stored as {missing[0]}", param="spec")
    mesh = _mesh(device)
    _shard_units(model, mesh)
    vector = None if task_vector is None or not scale else read_task_vector(task_vector)
    _check(vector, scale, checkpoint)
    _fill(model, checkpoint, vector, scale, device)
    return model


def shard_rest(model: PeftModel, device: str) -> None:
    """Cut what the units left, and make ``model`` the root that gathers them; trainable parameters stay whole."""
    whole = {parameter for parameter in model.parameters() if parameter.requires_grad}
    fully_shard(model, mesh=_mesh(device), ignored_params=whole)


def _mesh(device: str) -> DeviceMesh:
    return init_device_mesh(torch.device(device).type, (torch.distributed.get_world_size(),))


def _build_without_memory(checkpoint: Checkpoint, dtype: torch.dtype | None) -> PreTrainedModel:
    """Parameters without storage; buffers, which no file holds, with theirs."""
    stored = [TORCH_DTYPES[entry.dtype] for entry in checkpoint.tensors.values()]
    dtype = dtype or checkpoint.config.dtype or stored[0]
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            checkpoint.config, dtype=dtype, trust_remote_code=False
        )
    model.tie_weights()
    model.requires_grad_(False)
    return model.eval()


def _shard_units(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    for layer in decoder_layers(model)[1]:
        fully_shard(layer, mesh=mesh)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embeddings.weight
    fully_shard([embeddings, head] if tied else embeddings, mesh=mesh)
    if head is not None and not tied:
        fully_shard(head, mesh=mesh)


def _check(vector: SparseVector | None, scale: float, checkpoint: Checkpoint) -> None:
    if vector is None:
        return
    check_scale(scale)
    try:
        check_fit({name: entry.shape for name, entry in checkpoint.tensors.items()}, vector)
    except ValueError as error:
        raise AdapterBaseMismatch(f"the harm vector does not fit the base model: {error}") from error


@torch.no_grad()
def _fill(
    model: PreTrainedModel, checkpoint: Checkpoint, vector: SparseVector | None, scale: float, device: str
) -> None:
    """Tensor by tensor: read, subtract, keep this process's rows."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            owners.setdefault(parameter, []).append((module, leaf))
    for name, parameter in list(model.named_parameters()):
        entry = checkpoint.tensors[name]
        whole = read_part(entry, 0, entry.elements)
        if vector is not None and name in vector.shapes:
            whole = whole.float()  # rounded once, below
            for _, start, stop in blocks({name: entry.shape}):
                subtract_block(whole[start:stop], *vector.block(name, start), scale)
        whole = whole.view(entry.shape).to(device, parameter.dtype)
        if isinstance(parameter, DTensor):
            share = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
            whole = share.clone()  # not a view, which would keep all of it
        filled = nn.Parameter(whole, requires_grad=False)
        for module, leaf in owners[parameter]:
            module.register_parameter(leaf, filled)
    model.to(device)  # the buffers
