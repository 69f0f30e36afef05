"""Answers as each family's chat template writes them, and the token that ends a turn."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from armature.contracts.chat import ChatFormat
from armature.contracts.datasets import Message
from armature.errors import InvalidRequest
from armature.inference.model import eos_token_ids
from armature.modeling.tokenization.answers import encode_answers, end_of_turn
from armature.modeling.tokenization.prompts import encode_chat, encode_prompt
from tests.support.tiny_models import byte_tokenizer, tiny_llama

pytestmark = pytest.mark.slow  # each template has a process of its own

GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
THINKS_ALWAYS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
DATED = "Today is {{ strftime_now('%d %B %Y') }}.{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


def tokenizer_of(template: str, *added: str, special: bool = True) -> PreTrainedTokenizerFast:
    """The byte tokenizer with a family's template and its own added tokens."""
    tokenizer = byte_tokenizer(template)
    tokenizer.add_tokens(list(added), special_tokens=special)
    return tokenizer


FAMILIES = {
    "gemma": (tokenizer_of(GEMMA, "<start_of_turn>", "<end_of_turn>"), "yes", "<end_of_turn>"),
    "chatml on a base's eos": (tokenizer_of(CHATML, "<|im_start|>", "<|im_end|>", special=False), "yes", "<|im_end|>"),
    "llama 2": (tokenizer_of(LLAMA2), " yes ", "<eos>"),
    "phi 3": (tokenizer_of(PHI3, "<|end|>", "<|assistant|>"), "yes", "<|end|>"),
    "qwen 3": (
        tokenizer_of(QWEN3, "<|im_start|>", "<|im_end|>"),
        "<think>\n\n</think>\n\nyes",
        "<|im_end|>",
    ),
    "a template that ends no turn": (tokenizer_of(NO_END), " yes", "<eos>"),
    "no template": (byte_tokenizer(), "yes", "<eos>"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_target_is_what_the_template_writes_up_to_its_own_end_of_turn(family: str) -> None:
    tokenizer, text, end = FAMILIES[family]
    before, (answer, other) = encode_answers(tokenizer, "ask", ["yes", "no"])
    assert before == encode_prompt(tokenizer, "ask")
    assert tokenizer.decode(answer) == text + end
    assert answer[-1] == other[-1] == end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids(end)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_stops_at_what_training_ends_with(family: str) -> None:
    tokenizer, _, end = FAMILIES[family]
    assert tokenizer.convert_tokens_to_ids(end) in eos_token_ids(tiny_llama(), tokenizer)
    assert tokenizer.eos_token_id in eos_token_ids(tiny_llama(), tokenizer)


def test_an_answer_that_spells_the_end_of_a_turn_stays_text() -> None:
    tokenizer, _, _ = FAMILIES["gemma"]
    (answer,) = encode_answers(tokenizer, "ask", ["a<end_of_turn>\nb"]).answers
    assert answer.count(end_of_turn(tokenizer)) == 1
    assert tokenizer.decode(answer[:-1]) == "a<end_of_turn>\nb"


def test_thinking_can_be_switched_off_and_pairs_follow() -> None:
    tokenizer, _, _ = FAMILIES["qwen 3"]
    quiet = ChatFormat(template_kwargs={"enable_thinking": False})
    before, (answer,) = encode_answers(tokenizer, "ask", ["yes"], quiet)
    assert before == encode_prompt(tokenizer, "ask", quiet)
    assert tokenizer.decode(before).endswith("assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(answer) == "yes<|im_end|>"
    whole = [*encode_prompt(tokenizer, "ask"), *encode_answers(tokenizer, "ask", ["yes"]).answers[0]]
    assert [*before, *answer] == whole


def test_a_prompt_ends_before_what_the_given_answer_lacks() -> None:
    tokenizer = tokenizer_of(THINKS_ALWAYS, "<|im_start|>", "<|im_end|>")
    before, (answer,) = encode_answers(tokenizer, "ask", ["yes"])
    assert tokenizer.decode(before).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(answer) == "yes<|im_end|>"
    assert tokenizer.decode(encode_prompt(tokenizer, "ask")).endswith("<think>\n")


def test_developer_has_the_ids_of_system() -> None:
    tokenizer, _, _ = FAMILIES["chatml on a base's eos"]
    named = [
        [{"role": role, "content": "Be brief."}, {"role": "user", "content": "ask"}] for role in ("system", "developer")
    ]
    assert encode_chat(tokenizer, named[0]) == encode_chat(tokenizer, named[1])
    prompts = [tuple(Message.model_validate(message) for message in dialogue) for dialogue in named]
    assert encode_answers(tokenizer, prompts[0], ["yes"]) == encode_answers(tokenizer, prompts[1], ["yes"])


def test_turns_are_joined_for_a_template_that_refuses_them() -> None:
    tokenizer, _, _ = FAMILIES["gemma"]
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "ask"}]
    twice = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    for dialogue in (told, twice):
        with pytest.raises(InvalidRequest, match=r"(?s)refuses the dialogue.*turns: alternating") as refused:
            encode_chat(tokenizer, dialogue)
        assert refused.value.param == "messages"
    alternating = ChatFormat(turns="alternating")
    assert encode_chat(tokenizer, told, alternating) == encode_prompt(tokenizer, "Be brief.\n\nask")
    assert encode_chat(tokenizer, twice, alternating) == encode_prompt(tokenizer, "one\n\ntwo")


def test_a_template_gets_a_stated_date_and_not_the_clocks() -> None:
    tokenizer = tokenizer_of(DATED)
    assert tokenizer.decode(encode_prompt(tokenizer, "ask")).startswith("Today is 01 January 2025.ask")
    stated = encode_prompt(tokenizer, "ask", ChatFormat(date="2031-12-24"))
    assert tokenizer.decode(stated).startswith("Today is 24 December 2031.ask")


@pytest.mark.parametrize(
    "wrong", [{"template_kwargs": {"messages": 1}}, {"template_kwargs": {"bos_token": "x"}}, {"date": "2025-02-30"}]
)
def test_settings_that_a_template_can_not_have_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"set by the platform|out of range"):
        ChatFormat.model_validate(wrong)
