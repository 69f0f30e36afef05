"""Real models as people have them, a GGUF file: the imported folder answers as transformers does from that file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from armature.contracts.artifacts import CheckpointMetadata
from armature.contracts.datasets import Message
from armature.inference.lean.model import LeanModel
from armature.inference.model import GuidedModel, eos_token_ids, vocabulary_size
from armature.inference.request import GuidedRequest
from armature.modeling.checkpoints.loading import load_model, load_tokenizer
from armature.modeling.imports.gguf_parts import join_parts
from armature.modeling.tokenization.answers import encode_answers
from armature.modeling.tokenization.prompts import encode_chat
from tests.modeling.tokenization.test_answers import GEMMA
from tests.support.generate import generate_guided
from tests.support.real_models import gemma3_gguf, smollm2_gguf
from tests.worker.recipes.test_import_cases import Imported

TOKENS = 16
QUESTIONS = ("What is the capital of France?", "I failed my driving test. What now?")


def own_answers(folder: Path, prompts: list[list[int]], *, lean: bool) -> list[list[int]]:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    ends, size = eos_token_ids(model, tokenizer), vocabulary_size(tokenizer, model)
    guided = GuidedModel(LeanModel(model) if lean else model, ends, size)
    return generate_guided(guided, [GuidedRequest(tuple(ids), TOKENS, temperature=0.0) for ids in prompts])


def stock_answers(model: PreTrainedModel, prompts: list[list[int]]) -> list[list[int]]:
    answers = []
    for ids in prompts:
        out = model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)[0, len(ids) :].tolist()
        ends = model.generation_config.eos_token_id
        answers.append([token for token in out if token not in (ends if isinstance(ends, list) else [ends])])
    return answers


def ends_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Training targets as text: an answer to a text and to a dialogue, each with what ends the model's turn."""
    prompts = (QUESTIONS[0], (Message(role="user", content=QUESTIONS[0]),))
    return [tokenizer.decode(encode_answers(tokenizer, prompt, ["Paris."]).answers[0]) for prompt in prompts]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("fetch", "quantisation", "has_template", "back_ends"),
    [(smollm2_gguf, "Q4_1", True, ["hf", "lean"]), (gemma3_gguf, "Q8_0", False, ["hf"])],
    ids=["SmolLM2-135M-Instruct", "Gemma 3 270M"],
)
def test_a_gguf_answers_as_transformers_does_from_the_file(
    fetch: Callable[[], list[Path]], quantisation: str, has_template: bool, back_ends: list[str], tmp_path: Path
) -> None:
    source, whole = tmp_path / "source", tmp_path / "whole.gguf"
    source.mkdir()
    parts = fetch()
    for path in parts:
        shutil.copyfile(path, source / path.name)
    imported = Imported(source, dtype="float32")
    assert isinstance(imported.metadata, CheckpointMetadata)
    assert imported.metadata.origin is not None
    assert imported.metadata.origin.quantisation == quantisation
    assert imported.metadata.chat_template is has_template
    join_parts(parts, whole)
    stock = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=whole.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).eval()
    own = load_model(imported.folder).state_dict()
    assert all(torch.equal(own[name], weight) for name, weight in stock.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file=whole.name)
    own_tokenizer = load_tokenizer(imported.folder)
    assert ends_of(own_tokenizer) == ["Paris.<|im_end|>" if has_template else "Paris.<eos>"] * 2
    if not has_template:
        own_tokenizer.chat_template = GEMMA
        assert ends_of(own_tokenizer) == ["Paris.<end_of_turn>"] * 2
    prompts = [stock_ids(tokenizer, question) for question in QUESTIONS]
    ours = load_tokenizer(imported.folder)
    assert [encode_chat(ours, [{"role": "user", "content": question}]) for question in QUESTIONS] == prompts
    expected = stock_answers(stock, prompts)
    for back_end in back_ends:
        assert own_answers(imported.folder, prompts, lean=back_end == "lean") == expected


def stock_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    if not tokenizer.chat_template:
        return list(tokenizer(question).input_ids)
    dialogue = [{"role": "user", "content": question}]
    return list(tokenizer.apply_chat_template(dialogue, add_generation_prompt=True).input_ids)
