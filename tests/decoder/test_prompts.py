"""Prompts become ids that the model has: on a GPU an unknown id ends every request of the process."""

from __future__ import annotations

import asyncio

import pytest

from armature.errors import InvalidRequest
from armature.inference.model import GuidedModel
from armature_decoder.bundles.loader import LoadedBundle, WorkingMemory
from armature_decoder.guidance.base import GuidancePlan
from armature_decoder.prompts import chat_prompt, encode_prompt, text_prompt
from tests.support.tiny_models import byte_tokenizer, tiny_llama

ODD = "\x7f"
(KNOWN,) = byte_tokenizer()(ODD, add_special_tokens=False).input_ids
"""Of the tokenizer's ids; the rest of what is written here has smaller ones."""


@pytest.fixture(scope="module")
def bundle() -> LoadedBundle:
    model = GuidedModel(tiny_llama(vocab_size=KNOWN), frozenset({1}), KNOWN)
    return LoadedBundle(model, byte_tokenizer(), 256, WorkingMemory(1 << 30, 0, 4))


@pytest.mark.parametrize(
    ("text", "instruction", "param"),
    [(ODD, None, "prompt"), (ODD, "Be brief.", "prompt"), ("tea", f"Be {ODD}.", "sda.instruction")],
)
@pytest.mark.parametrize("form", ["text", "dialogue"])
def test_words_that_the_model_has_no_ids_for_are_refused(
    bundle: LoadedBundle, form: str, text: str, instruction: str | None, param: str
) -> None:
    prompt = text_prompt(text, "prompt") if form == "text" else chat_prompt([{"role": "user", "content": text}])
    with pytest.raises(InvalidRequest, match=str(KNOWN)) as refused:
        asyncio.run(encode_prompt(prompt, GuidancePlan(instruction_text=instruction), bundle, 4, 100))
    assert refused.value.param == param.replace("prompt", prompt.param)
