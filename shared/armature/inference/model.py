"""What generation needs to know of a loaded model, and the rows that run it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from armature.contracts.artifacts import LossForm
from armature.inference.kv_memory import KvMemory
from armature.inference.lean.model import LeanModel
from armature.inference.lean.runner import LeanRows
from armature.inference.prefix_cache import PrefixCache
from armature.inference.runner import Rows
from armature.inference.transformers.kv_cache import moves_frequencies
from armature.inference.transformers.runner import TwinRows
from armature.inference.transformers.unbatched import ApartRows
from armature.inference.two_models import SeparateRows


@dataclass(frozen=True)
class GuidedModel:
    """A loaded model with all that generation needs to know of it.

    The model's class decides which back end runs it. ``attributes`` name the preference's weights in the adapter's
    order, none without an adapter; ``loss_form`` is the form it was trained with, which decoding must match (trap T11).
    """

    model: PreTrainedModel | LeanModel
    eos_ids: frozenset[int]
    vocab_size: int
    attributes: tuple[str, ...] = ()
    loss_form: LossForm | None = None
    arm: PreTrainedModel | LeanModel | None = None
    """The model that the adapter is on, where that is not ``model`` itself; it speaks the same token ids."""

    @property
    def kv_memory(self) -> KvMemory:
        """What running requests take beside the weights."""
        base = _kv_memory(self.model)
        return base if self.arm is None else replace(base, arm=_kv_memory(self.arm))


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a sequence: the tokenizer's, and those of the model's generation config."""
    ids = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = ids if isinstance(ids, list) else [ids]
    return frozenset(id for id in [*listed, tokenizer.eos_token_id] if id is not None)


def vocabulary_size(tokenizer: PreTrainedTokenizerBase, *models: PreTrainedModel) -> int:
    """How many ids mean something to the tokenizer and to every model; an output layer may be padded beyond."""
    return min(len(tokenizer), *(int(model.config.vocab_size) for model in models))


def start_rows(model: GuidedModel, prefixes: PrefixCache | None = None) -> Rows:
    """Empty rows of the back end that each model's class decides on; ``model``'s use ``prefixes`` if they can."""
    attributes = len(model.attributes)
    if model.arm is None:
        return _start_rows(model.model, attributes, model.vocab_size, prefixes)
    return SeparateRows(
        _start_rows(model.model, 0, model.vocab_size, prefixes),
        _start_rows(model.arm, attributes, model.vocab_size, None),
    )


def _start_rows(
    model: PreTrainedModel | LeanModel, attributes: int, vocab_size: int, prefixes: PrefixCache | None
) -> Rows:
    if isinstance(model, LeanModel):
        return LeanRows(model, attributes, vocab_size, prefixes)
    start = partial(TwinRows, model, attributes, vocab_size, prefixes)
    return ApartRows(model, start) if moves_frequencies(model.config) else start()


def _kv_memory(model: PreTrainedModel | LeanModel) -> KvMemory:
    if isinstance(model, LeanModel):
        return model.kv_memory
    return KvMemory.of(model.config, model.dtype.itemsize)
