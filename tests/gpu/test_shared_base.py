"""Adapters share a base's dense weights on a GPU, each in a thread of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from armature.contracts.specs.arm import AdapterShape
from armature.inference.model import GuidedModel
from armature.inference.request import Guide, GuidedRequest
from armature.inference.shared_weights import SharedWeights
from tests.support.adapters import add_random_adapter
from tests.support.generate import generate_guided
from tests.support.tensors import new_tensors
from tests.support.tiny_models import tiny_family

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DEVICE = "cuda:0"
NAMES = ("empathy", "truthfulness")
SHAPE = AdapterShape(layers="all", targets="attention", rank_shared=0)
REQUESTS = [GuidedRequest((5, 6, 7 + i), 12, seed=i, guide=Guide((0.3, 0.7), 2.0)) for i in range(4)]
SEEDS = (1, 2, 3)


def load_base(lean: bool) -> SharedWeights:
    return SharedWeights(tiny_family("llama", hidden_size=128, intermediate_size=512).to(DEVICE), lean)


def on(base: SharedWeights, seed: int) -> GuidedModel:
    adapted = add_random_adapter(base.modules(), NAMES, seed, shape=SHAPE)
    return GuidedModel(base.run(adapted), frozenset({-1}), 259, NAMES, "reference")


def answers(model: GuidedModel) -> list[list[int]]:
    return generate_guided(model, REQUESTS)


@pytest.mark.parametrize("lean", [False, True], ids=["hf", "lean"])
def test_adapters_on_one_base_answer_as_alone_in_the_memory_of_one(lean: bool) -> None:
    alone = [answers(on(load_base(lean), seed)) for seed in SEEDS]
    with new_tensors() as taken:
        base = load_base(lean)
        dense = taken()
        models = [on(base, seed) for seed in SEEDS]
        assert taken() < 1.5 * dense
        with ThreadPoolExecutor(len(models)) as threads:
            assert list(threads.map(answers, models)) == alone
        models.clear()
        assert taken() == dense
