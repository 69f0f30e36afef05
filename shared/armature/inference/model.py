"""A loaded model with everything that generation needs to know of it, and the runner for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from armature.contracts.artifacts import LossForm
from armature.inference.grouped import GroupedRunner
from armature.inference.kv_memory import KvMemory
from armature.inference.lean.architecture import supports
from armature.inference.lean.model import LeanModel
from armature.inference.lean.runner import LeanRunner
from armature.inference.prefix_cache import PrefixCache
from armature.inference.runner import ModelRunner
from armature.inference.transformers.runner import TransformersRunner
from armature.modeling.tokenization.answers import end_of_turn

BackendName = Literal["auto", "hf", "lean"]

RUNS_LEAN: dict[BackendName, Callable[[PreTrainedModel], bool]] = {
    "auto": supports,
    "hf": lambda model: False,
    "lean": lambda model: True,
}
"""Whether the lean runner takes a loaded model's weights: the Llama family, an error for everything else. Otherwise
transformers runs it: any causal language model, and the reference for the lean runner."""


@dataclass(frozen=True)
class GuidedModel:
    """A loaded model and what generation needs to know of it. Its class decides which runner runs it.

    ``attributes`` name the preference's weights in the adapter's order, none without an adapter; ``loss_form`` is the
    form that the adapter was trained with, which decoding must match (docs/traps.md, 11).
    """

    model: PreTrainedModel | LeanModel
    eos_ids: frozenset[int]
    vocab_size: int
    attributes: tuple[str, ...] = ()
    loss_form: LossForm | None = None
    arm: PreTrainedModel | LeanModel | None = None
    """The model that the adapter is on, where that is not ``model`` itself; it uses the same token ids."""

    @property
    def kv_memory(self) -> KvMemory:
        """The key-value memory of its running requests."""
        base = _kv_memory(self.model)
        return base if self.arm is None else replace(base, arm=_kv_memory(self.arm))


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Collect every id that ends an answer: the generation config's, the tokenizer's, the turn's."""
    ids = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = ids if isinstance(ids, list) else [ids]
    return frozenset(id for id in [*listed, tokenizer.eos_token_id, end_of_turn(tokenizer)] if id is not None)


def vocabulary_size(tokenizer: PreTrainedTokenizerBase, *models: PreTrainedModel) -> int:
    """Return the bound of the ids valid for the tokenizer and every model.

    It is the largest id + 1: a vocabulary may have holes, so the number of tokens would leave out the last ones. An
    output layer may be padded beyond.
    """
    largest = int(max(tokenizer.get_vocab().values()))
    return min(largest + 1, *(int(model.config.vocab_size) for model in models))


def start_runner(model: GuidedModel, prefixes: PrefixCache | None = None) -> ModelRunner:
    """Make a runner without rows, by each model's class; that of ``model`` uses ``prefixes`` if it can."""
    attributes = len(model.attributes)
    if model.arm is None:
        return _start_runner(model.model, attributes, model.vocab_size, prefixes)
    return GroupedRunner(
        {
            "base": _start_runner(model.model, 0, model.vocab_size, prefixes),
            "arm": _start_runner(model.arm, attributes, model.vocab_size, None),
        }
    )


def _start_runner(
    model: PreTrainedModel | LeanModel, attributes: int, vocab_size: int, prefixes: PrefixCache | None
) -> ModelRunner:
    if isinstance(model, LeanModel):
        return LeanRunner(model, attributes, vocab_size, prefixes)
    return TransformersRunner(model, attributes, vocab_size, prefixes)


def _kv_memory(model: PreTrainedModel | LeanModel) -> KvMemory:
    if isinstance(model, LeanModel):
        return model.kv_memory
    return KvMemory.of(model.config, model.dtype.itemsize)
