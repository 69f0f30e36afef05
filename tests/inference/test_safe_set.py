"""The lexicographic guarantee, end to end: no token outside the safe set, however much the ARM wants one."""

from __future__ import annotations

import copy
import dataclasses
import random

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from armature.inference.lean.model import LeanModel
from armature.inference.model import GuidedModel
from armature.inference.request import Guide, GuidedRequest
from armature.modeling.adapters.peft_pblora import adapter_layers, preferences
from tests.support.adapters import add_random_adapter
from tests.support.generate import generate_guided
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.slow

NAMES = ("empathy", "helpfulness")
HARM = range(200, 210)
"""The tokens of a nonsense activity."""
LENGTH = 100
DELTAS = (0.05, 0.3, 1.0, 3.0)
ROUNDING = 1e-4


def fond_of_harm() -> PeftModel:
    """An ARM that was trained to say nothing but harm, whatever comes before."""
    base = tiny_llama(seed=5)
    base.lm_head.weight.data *= 20  # random logits are nearly even: nothing would be unlikely
    model = add_random_adapter(base, list(NAMES))
    tensors = [
        tensor.requires_grad_() for layer in adapter_layers(model).values() for tensor in layer.weights("default")
    ]
    optimizer = torch.optim.Adam(tensors, lr=0.02)
    draw = torch.Generator().manual_seed(0)
    for _ in range(200):
        ids = torch.randint(3, 259, (8, 12), generator=draw)
        weights = torch.rand(8, len(NAMES), generator=draw).softmax(-1)
        with preferences(model, weights):
            loss = -harm_mass(model(input_ids=ids).logits).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1  # nearly all of its probability
    return model.requires_grad_(False)


def harm_mass(logits: Tensor) -> Tensor:
    """The log of the probability of any harmful token."""
    return logits.log_softmax(-1)[..., HARM.start : HARM.stop].logsumexp(-1)


@pytest.fixture(scope="module")
def arm() -> PeftModel:
    return fond_of_harm()


def requests(count: int) -> list[GuidedRequest]:
    """Of every delta, weight, temperature and mode."""
    draw = random.Random(1)
    made = []
    for seed in range(count):
        share = draw.random()
        guide = Guide((share, 1 - share), draw.choice([0.5, 4.0, 32.0]), DELTAS[seed % 4], strict=draw.random() < 0.3)
        prompt = tuple(draw.randrange(3, 259) for _ in range(1 + seed % 7))
        temperature = draw.choice([0.0, 0.7, 2.0])
        made.append(GuidedRequest(prompt, LENGTH, seed, guide, temperature, top_k=draw.choice([0, 20])))
    return made


@pytest.mark.parametrize("form", ["reference", "sum"])
def test_five_thousand_tokens_of_an_arm_that_likes_harm(arm: PeftModel, form: str) -> None:
    asked = requests(52)
    model = GuidedModel(arm if form == "sum" else LeanModel(copy.deepcopy(arm)), frozenset({-1}), 259, NAMES, form)
    harmful = 0
    for one, answer in zip(asked, generate_guided(model, asked, max_slots=26), strict=True):
        assert one.guide is not None
        assert len(answer) == LENGTH
        ids = torch.tensor([[*one.prompt, *answer]])
        with torch.inference_mode(), preferences(arm, torch.zeros(1, 2), gate=torch.tensor([False])):
            log_safe = arm(input_ids=ids).logits[0, len(one.prompt) - 1 : -1].log_softmax(-1)
        gaps = log_safe.amax(-1) - log_safe[torch.arange(LENGTH), torch.tensor(answer)]
        assert gaps.max() <= one.guide.safe_set_delta + ROUNDING
        harmful += sum(token in HARM for token in answer)
    free = [dataclasses.replace(one, guide=Guide((0.5, 0.5), 8.0)) for one in asked[:13]]
    unbound = [token in HARM for answer in generate_guided(model, free) for token in answer]
    assert sum(unbound) > 0.7 * len(unbound)
    assert harmful < 0.5 * len(asked) * LENGTH  # only what the safe model itself finds nearly as likely
