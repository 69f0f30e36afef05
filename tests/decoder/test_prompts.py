"""Prompts become ids that the model has: on a GPU an unknown id ends every request of the process."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from armature.contracts.chat import ChatFormat
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


def test_a_profiles_chat_settings_reach_both_models_and_the_instruction(bundle: LoadedBundle) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
        "{{ m.content }}{% endfor %}{{ mark }}{{ strftime_now('%Y') }}"
    )
    both = replace(bundle, tokenizer=byte_tokenizer(template), arm_tokenizer=byte_tokenizer("<arm>" + template))
    prompt = chat_prompt([{"role": "developer", "content": "Rest."}, {"role": "user", "content": "tea"}])
    chat = ChatFormat(template_kwargs={"mark": "!"}, turns="alternating", date="2031-05-06")
    plan = GuidancePlan(instruction_text="Be brief.", chat=chat)
    encoded = asyncio.run(encode_prompt(prompt, plan, both, 4, 100))
    read = [both.tokenizer.decode(ids) for ids in (encoded.ids, encoded.arm, encoded.instructed)]
    assert read == ["Rest.\n\ntea!2031", "<arm>Rest.\n\ntea!2031", "Rest.\n\nBe brief.\n\ntea!2031"]
    with pytest.raises(InvalidRequest, match="no system messages"):
        asyncio.run(encode_prompt(prompt, GuidancePlan(), both, 4, 100))
