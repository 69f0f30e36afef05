"""Sliding windows at their edge: each row equals itself alone, whatever shorter and longer rows share the batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from armature.contracts.specs.arm import AdapterShape
from armature.inference.lean.architecture import supports
from armature.inference.prefix_cache import BLOCK_TOKENS, PrefixCache
from armature.inference.transformers.runner import TransformersRunner
from armature.modeling.adapters.peft_pblora import preferences
from armature_worker.data.pair_batches import PairLayout
from armature_worker.data.preference_pairs import LabelledPair
from armature_worker.data.tokenized import Example, collate
from tests.support.adapters import add_random_adapter
from tests.support.rows import TwinRows, join_rows
from tests.support.tiny_models import tiny_family

pytestmark = pytest.mark.slow

WINDOW = 8
ATTRIBUTES = ["empathy", "truthfulness"]
EMPATHY = [1.0, 0.0]
LAYERS = ["sliding_attention", "full_attention"] * 2
MODELS: dict[str, Callable[..., PreTrainedModel]] = {
    "mistral": lambda window=WINDOW: tiny_family("mistral", sliding_window=window),
    "gemma2": lambda window=WINDOW: tiny_family("gemma2", sliding_window=window, layer_types=LAYERS, head_dim=16),
    "gemma3": lambda window=WINDOW: tiny_family("gemma3_text", sliding_window=window, layer_types=LAYERS, head_dim=16),
}
LENGTHS = [1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 2]


def adapted(name: str, window: int = WINDOW) -> PeftModel:
    return add_random_adapter(MODELS[name](window), ATTRIBUTES, shape=AdapterShape(layers="all"))


def alone(model: PeftModel, ids: list[int], preference: list[float] | None) -> torch.Tensor:
    p = torch.tensor([preference or [0.0] * len(ATTRIBUTES)])
    with torch.inference_mode(), preferences(model, p, gate=torch.tensor([preference is not None])):
        return model(input_ids=torch.tensor([ids])).logits[0]


def prompts() -> list[list[int]]:
    return [[3 + (7 * row + column) % 200 for column in range(length)] for row, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("name", MODELS)
def test_a_window_hides_what_is_beyond_it(name: str) -> None:
    """Without this the other tests could pass on a model that ignores its window; lean refuses windows."""
    model, wide = adapted(name), adapted(name, 1000)
    _, _, at_the_edge, _, longest = prompts()
    assert len(at_the_edge) == WINDOW
    torch.testing.assert_close(alone(model, at_the_edge, None), alone(wide, at_the_edge, None), atol=1e-6, rtol=0)
    assert not torch.allclose(alone(model, longest, None)[-1], alone(wide, longest, None)[-1], atol=1e-3)
    assert not supports(MODELS[name]())


@pytest.mark.parametrize("chunk", [1000, 5])
@pytest.mark.parametrize("name", MODELS)
def test_rows_around_the_window_equal_each_alone(name: str, chunk: int) -> None:
    model, sequences = adapted(name), prompts()
    rows = TwinRows(TransformersRunner(adapted(name), len(ATTRIBUTES)))
    logits = join_rows(rows, sequences, [EMPATHY] * len(sequences), chunk)
    for _ in range(WINDOW + 2):
        for slot, ids in enumerate(sequences):
            for given, ours in ((None, logits.safe), (EMPATHY, logits.arm)):
                torch.testing.assert_close(ours[slot], alone(model, ids, given)[-1], atol=2e-5, rtol=0)
        tokens = logits.arm.argmax(-1)
        sequences = [[*ids, token] for ids, token in zip(sequences, tokens.tolist(), strict=True)]
        logits = rows.step(tokens)


@pytest.mark.parametrize("name", MODELS)
def test_a_known_prefix_longer_than_the_window_gives_the_same_logits(name: str) -> None:
    model = adapted(name)
    system = [3 + column % 90 for column in range(2 * BLOCK_TOKENS + 3)]
    rows = TwinRows(TransformersRunner(adapted(name), len(ATTRIBUTES), 259, PrefixCache(1 << 24)))
    for tail in ([100], [101, 102, 103]):
        rows.compute(rows.begin([([*system, 99], EMPATHY, "a")]))
        logits = rows.compute(rows.begin([([*system, *tail], EMPATHY, "a")]))
        torch.testing.assert_close(logits.arm[0], alone(model, [*system, *tail], EMPATHY)[-1], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_training_batches_around_the_window_equal_each_row_alone(name: str) -> None:
    model, sequences = adapted(name), [ids for ids in prompts() if len(ids) > 1]
    batch = collate([Example(ids, 1) for ids in sequences], "cpu")
    gate = torch.zeros(len(sequences), dtype=torch.bool)
    with torch.inference_mode(), preferences(model, torch.zeros(len(sequences), len(ATTRIBUTES)), gate=gate):
        logits = model(input_ids=batch.ids, attention_mask=batch.attention_mask).logits
    for row, ids in zip(logits, sequences, strict=True):
        torch.testing.assert_close(row[: len(ids)], alone(model, ids, None), atol=2e-5, rtol=0)


@pytest.mark.parametrize("longest", [WINDOW // 2, 2 * WINDOW])
@pytest.mark.parametrize("name", MODELS)
def test_pairs_around_the_window_equal_each_answer_alone(name: str, longest: int) -> None:
    model = adapted(name)
    examples = [[Example([5, 6, *range(20 + k, 20 + k + length)], 2) for k in (0, 50)] for length in (1, longest)]
    pairs = [LabelledPair(both, [1.0, -1.0]) for both in examples]
    layout = PairLayout.of(MODELS[name](), pairs, "cpu")
    batch = layout.collate(pairs)
    count = len(batch.inputs["input_ids"])
    with torch.inference_mode(), preferences(model, torch.zeros(count, 2), gate=torch.zeros(count, dtype=torch.bool)):
        logits = model(**batch.inputs).logits.flatten(0, 1)[batch.predictors]
    whole = [alone(model, example.ids, None)[1:-1] for both in examples for example in both]
    torch.testing.assert_close(logits, torch.cat(whole), atol=2e-5, rtol=0)
