"""Answers that share their prompt's row have the log-probabilities of separate rows, in every known family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from armature.algorithms.preference_loss import sequence_log_probs
from armature.modeling.answer_logits import PROMPT_SHARING, can_share_prompts, logits_at
from armature_worker.data.pair_batches import PairLayout
from armature_worker.data.preference_pairs import LabelledPair
from armature_worker.data.tokenized import Example, collate
from tests.support.tiny_models import tiny_family, tiny_llama

SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 256},
    "mistral": {"sliding_window": None},
    "qwen2": {"max_window_layers": 0},
    "qwen3": {"head_dim": 8},
}


def pair_of(prompt: int, *answers: int) -> LabelledPair:
    """A prompt of random tokens with two answers of these lengths."""
    before = torch.randint(3, 259, (prompt,)).tolist()
    return LabelledPair(
        [Example([*before, *torch.randint(3, 259, (size,)).tolist()], prompt) for size in answers], [1.0]
    )


def random_pairs() -> list[LabelledPair]:
    torch.manual_seed(3)
    return [pair_of(9, 4, 7), pair_of(2, 1, 1), pair_of(1, 6, 2), pair_of(5, 12, 12)]


@torch.no_grad()
def answer_log_probs(model: PreTrainedModel, layout: PairLayout, pairs: list[LabelledPair]) -> torch.Tensor:
    batch = layout.collate(pairs)
    with logits_at(model, batch.predictors):
        logits = model(**batch.inputs, use_cache=False).logits
    assert logits.shape[:2] == (1, len(batch.targets))
    chosen = logits[0].log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]
    return torch.zeros(batch.answers.shape).masked_scatter(batch.answers, chosen).sum(-1)


@torch.no_grad()
def reference_log_probs(model: PreTrainedModel, pairs: list[LabelledPair]) -> torch.Tensor:
    """Each answer alone behind its prompt, with logits everywhere."""
    alone = [collate([example], "cpu") for pair in pairs for example in pair.examples]
    return torch.cat([sequence_log_probs(model(b.ids).logits, b.ids, b.completion_mask) for b in alone])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", sorted(PROMPT_SHARING))
def test_answers_to_one_prompt_do_not_attend_to_each_other(family: str, attention: str) -> None:
    model, pairs = tiny_family(family, **SETTINGS.get(family, {}), attn_implementation=attention), random_pairs()
    layout = PairLayout.of(model, pairs, "cpu")
    assert layout.shared
    assert layout.collate(pairs).rows_per_pair == 1
    torch.testing.assert_close(
        answer_log_probs(model, layout, pairs), reference_log_probs(model, pairs), atol=2e-5, rtol=1e-5
    )


def test_a_row_per_answer_gives_the_same_log_probabilities() -> None:
    model, pairs = tiny_llama(), random_pairs()
    layout = PairLayout("cpu", torch.float32, shared=False)
    assert layout.collate(pairs).rows_per_pair == 2
    torch.testing.assert_close(answer_log_probs(model, layout, pairs), reference_log_probs(model, pairs))


def test_without_a_prompt_nothing_predicts_the_first_token() -> None:
    torch.manual_seed(0)
    model, pairs = tiny_llama(), [pair_of(0, 3, 5), pair_of(0, 1, 2)]
    for shared in (False, True):
        layout = PairLayout("cpu", torch.float32, shared)
        torch.testing.assert_close(answer_log_probs(model, layout, pairs), reference_log_probs(model, pairs))


def test_rows_must_fit_a_sliding_window_and_the_family_be_known() -> None:
    window = tiny_family("mistral", sliding_window=16).config
    assert can_share_prompts(window, 16)
    assert not can_share_prompts(window, 17)
    assert not can_share_prompts(tiny_family("bloom", n_head=4, n_layer=2).config, 8)


def test_the_head_is_left_as_it_was() -> None:
    model, ids = tiny_llama(), torch.tensor([[5, 6, 7]])
    with logits_at(model, torch.tensor([2, 0, 2])):
        some = model(ids).logits
    everywhere = model(ids).logits
    torch.testing.assert_close(some[0], everywhere[0, [2, 0, 2]])
