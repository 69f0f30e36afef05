"""On a CPU the lean back end computes a request's logits to the bit, whatever is computed along with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from armature.inference.lean.model import LeanModel
from armature.inference.lean.runner import LeanRunner
from armature.inference.prefix_cache import PrefixCache
from armature.inference.stream import Stream
from tests.support.adapters import add_random_adapter
from tests.support.tiny_models import tiny_family

ATTRIBUTES = ("empathy", "truthfulness")
STEPS = 4
LENGTHS = (3, 40, 75)


class Request(NamedTuple):
    prompt: list[int]
    preference: tuple[float, float] = (0.3, 0.7)


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


NEIGHBOURS = [Request(prompt(length, length), (1.0, 0.0)) for length in (5, 63, 17, 90, 33)]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> LeanModel:
    return LeanModel(add_random_adapter(tiny_family("llama").to(request.param), ATTRIBUTES, 1, size=0.05))


def logits(
    model: LeanModel,
    requests: Sequence[Request],
    wanted: int = 0,
    *,
    chunk: int = sys.maxsize,
    prefixes: PrefixCache | None = None,
) -> Tensor:
    """Both streams' logits of one of the requests, after its prompt and at each step (STEPS + 1, 2, V)."""
    runner, streams = LeanRunner(model, len(ATTRIBUTES), prefixes=prefixes), list[Stream]()
    for one in requests:
        safe = Stream(one.prompt, namespace="tenant")
        streams += [safe, safe.guided(one.preference)]
    prefill, own = runner.prefill(streams), slice(2 * wanted, 2 * wanted + 2)
    while prefill.remaining:
        runner.extend(prefill, chunk)
    assert prefill.logits is not None
    found = [prefill.logits[own]]
    runner.join(prefill)
    for step in range(STEPS):
        tokens = [7 * step + (3 if row // 2 == wanted else 11 + row // 2) for row in range(len(streams))]
        found.append(runner.decode(torch.tensor(tokens))[own])
    return torch.stack(found)


@pytest.mark.parametrize("length", LENGTHS)
def test_neighbours_change_no_bit(model: LeanModel, length: int) -> None:
    one = Request(prompt(length))
    alone = logits(model, [one])
    for place in (0, 1, 3, 5):
        assert torch.equal(logits(model, [*NEIGHBOURS[:place], one, *NEIGHBOURS[place : place + 2]], place), alone)


@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_of_a_prompt_change_no_bit(model: LeanModel, length: int) -> None:
    one = Request(prompt(length))
    whole = logits(model, [one])
    for chunk in (2, 14, 66):
        assert torch.equal(logits(model, [one], chunk=chunk), whole)


def test_what_the_prefix_cache_knows_changes_no_bit(model: LeanModel) -> None:
    one = Request(prompt(75))
    unknown = logits(model, [one])
    for known in (one, one._replace(preference=(0.0, 1.0)), one._replace(prompt=one.prompt[:33])):
        prefixes = PrefixCache(1 << 30)
        logits(model, [known], prefixes=prefixes)
        assert torch.equal(logits(model, [*NEIGHBOURS[:1], one], 1, prefixes=prefixes), unknown)
