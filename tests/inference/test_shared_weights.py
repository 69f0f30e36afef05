"""Several adapters, and none, on the weights of one base: each model is what it would be alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from armature.contracts.specs.arm import AdapterShape
from armature.errors import InvalidCheckpoint
from armature.inference.lean.model import LeanModel
from armature.inference.model import GuidedModel
from armature.inference.request import Guide, GuidedRequest
from armature.inference.shared_weights import SharedWeights
from tests.support.adapters import add_random_adapter
from tests.support.generate import generate_guided
from tests.support.tensors import new_tensors
from tests.support.tiny_models import tiny_family

pytestmark = pytest.mark.slow

NAMES = ("empathy", "truthfulness")
SHAPES = {
    1: AdapterShape(layers="all"),
    2: AdapterShape(layers="upper_half", targets="mlp", rank_shared=2, rank_conditioned=3),
    3: AdapterShape(layers="all", targets="attention", rank_shared=0),
}
"""By the seed of the adapter."""
REQUESTS = [
    GuidedRequest((5, 6, 7), 12, seed=1, guide=Guide((0.3, 0.7), 2.0)),
    GuidedRequest((9, 8), 10, seed=2),
    GuidedRequest(tuple(range(10, 30)), 8, seed=3, guide=Guide((1.0, 0.0), 1.0, 4.0)),
]


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=32, n_layer=4, n_head=2, n_positions=64)).eval()


BASES: dict[str, tuple[Callable[[], PreTrainedModel], bool]] = {
    "hf-llama": (lambda: tiny_family("llama", tie_word_embeddings=True), False),
    "hf-gpt2": (gpt2, False),
    "lean-llama": (lambda: tiny_family("llama", tie_word_embeddings=True), True),
    "lean-qwen3": (lambda: tiny_family("qwen3", head_dim=16, tie_word_embeddings=False), True),
    "lean-biased": (lambda: tiny_family("llama", attention_bias=True, mlp_bias=True), True),
}


def on(base: SharedWeights, seed: int | None) -> GuidedModel:
    """A model on the base, with the adapter of that seed or none."""
    modules = base.modules()
    tree = add_random_adapter(modules, NAMES, seed, shape=SHAPES[seed]) if seed else modules
    return GuidedModel(base.run(tree), frozenset({-1}), 259, NAMES if seed else (), "reference" if seed else None)


def answers(model: GuidedModel) -> list[list[int]]:
    return generate_guided(model, REQUESTS if model.attributes else REQUESTS[1:2])


@pytest.mark.parametrize("kind", BASES)
def test_models_that_share_weights_give_their_own_tokens(kind: str) -> None:
    make, lean = BASES[kind]
    seeds = (1, None, 2, 3)
    alone = [answers(on(SharedWeights(make(), lean), seed)) for seed in seeds]
    base = SharedWeights(make(), lean)
    models = [on(base, seed) for seed in seeds]
    assert [answers(model) for model in models] == alone
    assert len({str(each[0]) for each in (alone[0], alone[2], alone[3])}) == 3  # the adapters differ
    with ThreadPoolExecutor(len(models)) as threads:
        assert list(threads.map(answers, models)) == alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lean", [False, True], ids=["hf", "lean"])
def test_ten_adapters_take_the_memory_of_one_base(lean: bool, dtype: torch.dtype) -> None:
    with new_tensors() as taken:
        base = SharedWeights(tiny_family("llama", hidden_size=128, intermediate_size=512).to(dtype), lean)
        alone = taken()
        models = [on(base, 3)]
        adapter = taken() - alone
        assert 0 < adapter < alone / 8
        models += [on(base, 3) for _ in range(9)]
        assert taken() <= alone + 10 * adapter
        models.clear()
        assert taken() == alone  # an adapter leaves nothing behind
        del base
        assert taken() == 0


def test_the_base_is_not_touched_by_what_happens_on_its_trees() -> None:
    model = tiny_family("llama")
    before = copy.deepcopy(model.state_dict())
    base = SharedWeights(model, lean=False)
    first, second = base.modules(), base.modules()
    add_random_adapter(first, NAMES, 1)
    assert second.state_dict().keys() == before.keys()
    for key, tensor in second.state_dict().items():
        assert torch.equal(tensor, before[key])
        assert not tensor.requires_grad


def test_an_unsupported_model_is_refused_with_its_weights_intact() -> None:
    model = gpt2()
    with pytest.raises(InvalidCheckpoint, match="model_type"):
        SharedWeights(model, lean=True)
    assert all(parameter.numel() for parameter in model.parameters())
    assert isinstance(on(SharedWeights(tiny_family("llama"), lean=True), None).model, LeanModel)
