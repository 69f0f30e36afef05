"""A frozen backbone sharded over the ranks of a process group (FSDP2).

The model is built on the meta device, and every rank reads the tensors one by one and keeps its own rows of each, so no
rank ever holds more than its shard and the largest tensor. Adapters are replicated: they are attached afterwards, and
:func:`shard_rest` leaves them out.

Each decoder layer is an FSDP unit, gathered before its forward pass and again before its backward pass; so are the
embeddings, together with the output head if the two are tied.
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
    """Load this rank's shard of ``theta_b - scale * v``, frozen, in ``dtype`` or the stored one.

    A collective: every rank calls it at the same time, with its own ``device``.

    Raises:
        InvalidRequest: The architecture renames or merges its tensors on loading, so it can not be read in shards.
        AdapterBaseMismatch: The vector was made from a model with other tensors.
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
    """Shard the parameters outside of the units, with ``model`` as the root; replicate trainable ones."""
    replicated = {parameter for parameter in model.parameters() if parameter.requires_grad}
    fully_shard(model, mesh=_mesh(device), ignored_params=replicated)


def _mesh(device: str) -> DeviceMesh:
    return init_device_mesh(torch.device(device).type, (torch.distributed.get_world_size(),))


def _build_without_memory(checkpoint: Checkpoint, dtype: torch.dtype | None) -> PreTrainedModel:
    """Build the model with parameters on the meta device; buffers, which no file has, are real."""
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
    """Fill the parameters one by one: read, subtract, keep this rank's rows."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            owners.setdefault(parameter, []).append((module, leaf))
    for name, parameter in list(model.named_parameters()):
        entry = checkpoint.tensors[name]
        whole = read_part(entry, 0, entry.elements)
        if vector is not None and name in vector.shapes:
            for _, start, stop in blocks({name: entry.shape}):
                subtract_block(whole[start:stop], *vector.block(name, start), scale)
        whole = whole.view(entry.shape).to(device, parameter.dtype)
        if isinstance(parameter, DTensor):
            shard = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
            whole = shard.clone()  # the shard is a view, which would keep the whole tensor alive
        filled = nn.Parameter(whole, requires_grad=False)
        for module, leaf in owners[parameter]:
            module.register_parameter(leaf, filled)
    model.to(device)  # the buffers
