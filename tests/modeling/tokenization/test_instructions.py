"""The place of an instruction: in the system message or before a text, and never a special token."""

from __future__ import annotations

import pytest

from armature.errors import InvalidRequest
from armature.modeling.tokenization.instructions import encode_instructed_chat, encode_instructed_text
from armature.modeling.tokenization.prompts import encode_chat, encode_text
from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer

USER = {"role": "user", "content": "hello"}
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}" + CHAT_TEMPLATE


def test_an_instruction_ends_the_system_message() -> None:
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    alone = encode_instructed_chat(tokenizer, [USER], "Be kind.")
    assert alone == encode_chat(tokenizer, [{"role": "system", "content": "Be kind."}, USER])
    for role in ("system", "developer"):
        joined = encode_instructed_chat(tokenizer, [{"role": role, "content": "You help."}, USER], "Be kind.")
        assert joined == encode_chat(tokenizer, [{"role": role, "content": "You help.\n\nBe kind."}, USER])


def test_an_instruction_comes_before_a_text() -> None:
    tokenizer = byte_tokenizer()
    wanted = encode_text(tokenizer, "Be kind.\n\nhello")
    assert encode_instructed_chat(tokenizer, [USER], "Be kind.") == wanted
    assert encode_instructed_text(tokenizer, "hello", "Be kind.") == wanted
    ids = encode_text(tokenizer, "hello")
    assert encode_instructed_text(tokenizer, ids, "Be kind.") == wanted
    assert encode_instructed_text(tokenizer, [tokenizer.bos_token_id, *ids], "Be kind.") == wanted


def test_special_tokens_in_an_instruction_are_text() -> None:
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    plain = encode_instructed_chat(tokenizer, [USER], "x")
    ids = encode_instructed_chat(tokenizer, [USER], "<eos>")
    assert ids.count(tokenizer.eos_token_id) == plain.count(tokenizer.eos_token_id)
    assert tokenizer.eos_token_id not in encode_instructed_text(tokenizer, "a", "<eos>")


def test_a_template_without_system_messages_is_named() -> None:
    with pytest.raises(InvalidRequest, match="no system message") as refused:
        encode_instructed_chat(byte_tokenizer(NO_SYSTEM), [USER], "Be kind.")
    assert refused.value.param == "sda.instruction"
