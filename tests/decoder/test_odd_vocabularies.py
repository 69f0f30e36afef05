"""Vocabularies as real models have them: holes between the ids, and fewer tokens than alternatives asked for."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from armature.inference.batch import sample_sequences
from armature.inference.model import GuidedModel, vocabulary_size
from armature.inference.request import GuidedRequest
from armature_decoder.http.token_reports import Reporter, chat_logprobs
from tests.support.tiny_models import byte_tokenizer, tiny_llama


@pytest.mark.parametrize("moved", [290, 1000])
def test_a_hole_is_an_id_without_text(moved: int) -> None:
    """The last id decodes, the chat is not refused, and what was sampled in a hole has an empty text."""
    state = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    state["model"]["vocab"]["a"] = moved
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<eos>")
    model = tiny_llama(vocab_size=1024)
    size = vocabulary_size(tokenizer, model)
    assert size == moved + 1
    guided = GuidedModel(model, frozenset(), size)
    request = GuidedRequest((moved, moved), 60, seed=4, temperature=5.0, top_logprobs=20)
    (sequence,) = sample_sequences(guided, [request], 4)
    reporter = Reporter(tokenizer, parts=False, guided=False)
    reports = [report for sampled in sequence if (report := reporter.report(sampled)) is not None]
    assert len(reports) == len(sequence)
    contents = chat_logprobs(reports)
    assert all(len(content.top_logprobs) == 20 for content in contents)
    holes = [content for sampled, content in zip(sequence, contents, strict=True) if 259 <= sampled.token < moved]
    assert holes
    assert {content.token for content in holes} == {""}


def test_fewer_tokens_than_alternatives() -> None:
    guided = GuidedModel(tiny_llama(vocab_size=12), frozenset({1}), 12)
    (sequence,) = sample_sequences(guided, [GuidedRequest((5,), 3, top_logprobs=20)], 4)
    assert [len(sampled.top) for sampled in sequence] == [12] * len(sequence)
