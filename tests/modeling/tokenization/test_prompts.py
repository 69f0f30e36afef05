"""Token ids of prompts and completions: equal everywhere, and user text never becomes a special token."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from armature.errors import InvalidRequest
from armature.modeling.tokenization.answers import encode_answers, encode_continuation
from armature.modeling.tokenization.chat_templates import CPU_SECONDS, probe_chat_template
from armature.modeling.tokenization.prompts import encode_chat, encode_prompt, encode_text
from tests.support.tiny_models import BOS, CHAT_TEMPLATE, EOS, byte_tokenizer

PLAIN, CHAT = byte_tokenizer(), byte_tokenizer(CHAT_TEMPLATE)
SPECIAL = set(PLAIN.all_special_ids)


def with_bos(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    ids = [(BOS, tokenizer.bos_token_id), (EOS, tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


PIECES = st.one_of(st.sampled_from([BOS, EOS, "<pad>", " ", "\n"]), st.text(max_size=5))


@pytest.mark.bad_input(22)
@given(st.lists(PIECES).map("".join).filter(bool))
@settings(max_examples=60, deadline=None)
def test_user_text_never_becomes_a_special_token(text: str) -> None:
    assert not SPECIAL & set(encode_text(PLAIN, text))
    assert PLAIN.decode(encode_text(PLAIN, text)) == text
    inside = encode_prompt(CHAT, text)
    assert (inside[0], inside.count(CHAT.bos_token_id), inside.count(CHAT.eos_token_id)) == (CHAT.bos_token_id, 1, 1)
    (answer,) = encode_answers(CHAT, "hi", [text]).answers
    assert (CHAT.decode(answer[:-1]), SPECIAL & set(answer[:-1])) == (text, set())


@pytest.mark.trap(15)
def test_beginning_of_sequence_comes_once_and_the_end_never() -> None:
    for template in (f"{BOS} $A", f"{BOS} $A {EOS}"):
        plain = with_bos(byte_tokenizer(), template)
        assert encode_text(plain, "ab") == [plain.bos_token_id, *PLAIN("ab").input_ids]
        assert encode_prompt(with_bos(byte_tokenizer(CHAT_TEMPLATE), template), "ab").count(plain.bos_token_id) == 1
    assert encode_text(PLAIN, "ab") == PLAIN("ab").input_ids


def test_dialogues_follow_the_template() -> None:
    dialogue = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"},
    ]
    expected = f"{BOS}[system]s{EOS}[user]u{EOS}[assistant]a{EOS}[user]v{EOS}[assistant]"
    assert CHAT.decode(encode_chat(CHAT, dialogue)) == expected


def test_without_a_template_only_one_user_message_has_a_meaning() -> None:
    assert encode_chat(PLAIN, [{"role": "user", "content": "hi"}]) == encode_text(PLAIN, "hi")
    for dialogue in ([{"role": "system", "content": "s"}], [{"role": "user", "content": "u"}] * 2, []):
        with pytest.raises(InvalidRequest) as caught:
            encode_chat(PLAIN, dialogue)
        assert caught.value.param == "messages"


def test_a_template_that_refuses_is_the_callers_error() -> None:
    refusing = byte_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequest, match="alternate"):
        encode_prompt(refusing, "hi")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fatal", "reason"),
    [
        ("{{ 1 / (messages | length - 4) }}", "ZeroDivisionError"),
        ("{{ 1 + messages[0].content }}", "TypeError"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "too long"),
        ("{% for m in messages %}{% for i in range(99999) %}{{ 'x' * 99 }}{% endfor %}{% endfor %}", "characters"),
        ("{% set a = messages[0].role * 999999999 %}{{ a ~ a ~ a }}", "MemoryError|too long"),
    ],
)
def test_a_template_that_fails_on_some_dialogues_renders_others(fatal: str, reason: str) -> None:
    """Each passes the probe at import, which renders one message and three."""
    tokenizer = byte_tokenizer("{% if messages | length == 4 %}" + fatal + "{% endif %}" + CHAT_TEMPLATE)
    probe_chat_template(tokenizer.chat_template, tokenizer.special_tokens_map)
    with pytest.raises(InvalidRequest, match=reason) as caught:
        encode_chat(tokenizer, [{"role": "user", "content": "u"}] * 4)
    assert caught.value.param == "messages"
    assert encode_prompt(tokenizer, "hi") == encode_prompt(CHAT, "hi")


@pytest.mark.slow
def test_a_slow_template_blocks_no_other_tokenizer() -> None:
    slow = byte_tokenizer("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    encode_prompt(CHAT, "warm")
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(encode_prompt, slow, "hi")
        while not refused.done():
            before = time.monotonic()
            encode_prompt(CHAT, "hi")
            assert time.monotonic() - before < CPU_SECONDS / 2
        assert isinstance(refused.exception(), InvalidRequest)


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose ``a`` and ``b`` merge into ``ab``, also across the end of the prompt."""
    backend = Tokenizer(BPE(vocab={"<unk>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}, merges=[("a", "b")]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


@pytest.mark.trap(14)
def test_a_merge_across_the_seam_is_undone() -> None:
    tokenizer = merging_tokenizer()
    assert tokenizer("ab").input_ids == [4]
    assert encode_continuation(tokenizer, "a", "b") == [3]
    assert encode_continuation(tokenizer, "b", "ab") == [4]


@pytest.mark.trap(14)
def test_a_completion_continues_running_text() -> None:
    """A tokenizer that marks the start of a text: a completion in running text must not carry the mark."""
    backend = Tokenizer(BPE(vocab={"<unk>": 0, "</s>": 1, "_": 2, "a": 3, "b": 4}, merges=[]))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("_"), normalizers.Replace(" ", "_")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    assert encode_text(tokenizer, "a") == [2, 3]
    assert encode_continuation(tokenizer, "a", "b") == [4]
    assert encode_continuation(tokenizer, "a", " b") == [2, 4]


def test_what_a_word_level_tokenizer_can_not_read_as_text_is_refused() -> None:
    backend = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, "word": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    assert encode_text(tokenizer, "word other") == [2, 0]
    with pytest.raises(InvalidRequest, match="no tokens"):
        encode_text(tokenizer, "  ")
    with pytest.raises(InvalidRequest, match="</s>"):
        encode_text(tokenizer, "word </s>")
    tokenizer.chat_template = CHAT_TEMPLATE
    with pytest.raises(InvalidRequest, match="</s>"):
        encode_prompt(tokenizer, "word </s>")
