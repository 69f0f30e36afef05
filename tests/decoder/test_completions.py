"""Text completions through the stock ``openai`` client: every form of prompt, echoes, and scores of given texts."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from openai import OpenAI

from armature.inference.request import GuidedRequest
from armature.modeling.adapters.peft_pblora import preferences
from armature.modeling.tokenization.prompts import encode_text
from tests.support.generate import generate_guided
from tests.support.serving import ATTRIBUTES, PublishedBundle
from tests.support.tiny_models import byte_tokenizer

TOKENIZER = byte_tokenizer()
PLAIN = {"extra_body": {"guidance_weight": 0.0}}


def complete(client: OpenAI, **fields: Any) -> Any:
    return client.completions.create(**{"model": "care", "max_tokens": 6, "seed": 1, **PLAIN, **fields})


def base_log_probs(bundle: PublishedBundle, ids: list[int]) -> torch.Tensor:
    """What transformers' forward pass says after each position of a text: (T, V)."""
    model: Any = bundle.reference.model
    with torch.inference_mode(), preferences(model, torch.zeros(1, len(ATTRIBUTES)), gate=torch.tensor([False])):
        return torch.as_tensor(model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1))


def test_every_form_of_prompt_is_continued_alike(client: OpenAI) -> None:
    texts = ["once", "upon a time"]
    ids = [encode_text(TOKENIZER, text) for text in texts]
    alone = [complete(client, prompt=text, seed=seed).choices[0].text for seed, text in enumerate(texts)]
    assert len(set(alone)) == 2
    assert complete(client, prompt=ids[0], seed=0).choices[0].text == alone[0]
    for several in (texts, ids):
        answer = complete(client, prompt=several, seed=0)
        assert [choice.text for choice in answer.choices] == alone
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert answer.usage.prompt_tokens == sum(map(len, ids))


def test_n_answers_to_each_prompt_have_consecutive_seeds(
    client: OpenAI, serving_bundles: dict[str, PublishedBundle]
) -> None:
    answer = complete(client, prompt=["ab", "cd"], n=2, seed=5)
    requests = [
        GuidedRequest(tuple(encode_text(TOKENIZER, text)), 6, seed)
        for text, seed in (("ab", 5), ("ab", 6), ("cd", 7), ("cd", 8))
    ]
    expected = generate_guided(serving_bundles["one"].reference, requests)
    assert [choice.text for choice in answer.choices] == [
        TOKENIZER.decode(ids, skip_special_tokens=True) for ids in expected
    ]
    assert answer.usage.total_tokens == len("ab") + len("cd") + answer.usage.completion_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_begins_with_the_prompt(client: OpenAI, stream: bool) -> None:
    prompts = ["once", "a €"]
    plainly = [choice.text for choice in complete(client, prompt=prompts, n=2).choices]
    told = complete(client, prompt=prompts, n=2, echo=True, stream=stream)
    texts = dict.fromkeys(range(4), "")
    for chunk in told if stream else [told]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert list(texts.values()) == [prompts[index // 2] + text for index, text in enumerate(plainly)]


def test_a_given_text_is_scored_as_transformers_scores_it(
    client: OpenAI, serving_bundles: dict[str, PublishedBundle]
) -> None:
    text = "the quick brown fox"
    ids = encode_text(TOKENIZER, text)
    answer = complete(client, prompt=ids, echo=True, max_tokens=0, logprobs=1, temperature=0)
    choice, expected = answer.choices[0], base_log_probs(serving_bundles["one"], ids)
    assert (choice.text, choice.finish_reason, answer.usage.completion_tokens) == (text, "length", 0)
    logprobs = choice.logprobs
    assert logprobs.tokens == [TOKENIZER.decode([id]) for id in ids]
    assert logprobs.text_offset == [0, *accumulate(map(len, logprobs.tokens))][:-1]
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    for position, (given, top) in enumerate(
        zip(logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True), start=1
    ):
        row = expected[position - 1]
        assert given == pytest.approx(float(row[ids[position]]), abs=1e-5)
        assert max(top.values()) == pytest.approx(float(row.max()), abs=1e-5)
        assert len(top) <= 2


def test_scores_of_prompt_and_answer_stand_in_one_list(
    client: OpenAI, serving_bundles: dict[str, PublishedBundle]
) -> None:
    """The form in which lm-evaluation-harness asks: the context and its continuation as ids, and one token more."""
    ids = encode_text(TOKENIZER, "abcdef")
    answer = complete(client, prompt=[ids, ids[:3]], echo=True, max_tokens=1, logprobs=1, temperature=0)
    for choice, prompt in zip(answer.choices, (ids, ids[:3]), strict=True):
        row = base_log_probs(serving_bundles["one"], prompt)
        assert len(choice.logprobs.token_logprobs) == len(prompt) + 1
        assert choice.logprobs.token_logprobs[-1] == pytest.approx(float(row[-1].max()), abs=1e-5)
        given = sum(choice.logprobs.token_logprobs[1:-1])
        assert given == pytest.approx(sum(float(row[i, id]) for i, id in enumerate(prompt[1:])), abs=1e-4)


def test_the_end_of_sequence_has_a_log_probability_and_no_text(client: OpenAI) -> None:
    answer = complete(client, prompt="x", logprobs=0, logit_bias={str(TOKENIZER.eos_token_id): 100})
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason, choice.logprobs.tokens) == ("", "stop", [TOKENIZER.eos_token])
    assert choice.logprobs.token_logprobs[0] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_that_is_a_special_token_ends_the_answer_at_it(client: OpenAI, stream: bool) -> None:
    """The text leaves special tokens out, so a search in it never finds one."""
    fields: dict[str, Any] = {"prompt": "x", "logit_bias": {str(TOKENIZER.pad_token_id): 100}}
    unstopped = complete(client, **fields)
    assert (unstopped.choices[0].finish_reason, unstopped.usage.completion_tokens) == ("length", 6)
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    told = complete(client, **fields, **options, stop=["never", TOKENIZER.pad_token])
    chunks = list(told) if stream else [told]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.text for choice in choices) == ""
    assert (choices[-1].finish_reason, chunks[-1].usage.completion_tokens) == ("stop", 0)


def test_a_stream_of_log_probabilities_adds_up(client: OpenAI) -> None:
    fields: dict[str, Any] = {"prompt": "once", "logprobs": 2, "echo": True, "max_tokens": 5}
    whole = complete(client, **fields).choices[0].logprobs
    tokens, offsets, values = [], [], []
    for chunk in complete(client, **fields, stream=True):
        for choice in chunk.choices:
            if choice.logprobs:
                tokens += choice.logprobs.tokens
                offsets += choice.logprobs.text_offset
                values += choice.logprobs.token_logprobs
    assert (tokens, offsets, values) == (whole.tokens, whole.text_offset, whole.token_logprobs)


def test_the_prompt_comes_back_unscored_where_nothing_is_asked(client: OpenAI) -> None:
    answer = complete(client, prompt=["a", "b"], echo=True, max_tokens=0)
    assert [(choice.text, choice.logprobs, choice.finish_reason) for choice in answer.choices] == [
        ("a", None, "length"),
        ("b", None, "length"),
    ]
    assert answer.usage.completion_tokens == 0
