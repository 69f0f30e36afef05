"""Encoding of given answers as the model would write them, up to the token that ends its turn.

What training teaches a model to end with is what generation stops at: both ask :func:`end_of_turn`.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from armature.contracts.chat import AS_SENT, ChatFormat
from armature.contracts.datasets import Prompt
from armature.modeling.tokenization.chat_templates import TemplateFailed
from armature.modeling.tokenization.dialogues import as_messages
from armature.modeling.tokenization.prompts import encode_prompt
from armature.modeling.tokenization.rendering import (
    LockedTokenizer,
    encode_plain,
    encode_rendered,
    template_refusal,
)


class EncodedAnswers(NamedTuple):
    """A prompt's token ids, and those of each answer to it; an answer's last one ends the turn."""

    prompt: list[int]
    answers: list[list[int]]


def end_of_turn(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat = AS_SENT) -> int:
    """Return the id that ends an assistant's turn: what the chat template writes first after an answer.

    It is the first special or added token there (Gemma's ``<end_of_turn>``, ChatML's ``<|im_end|>``); the tokenizer's
    end of sequence if the template writes none, or there is no template.
    """
    locked = LockedTokenizer.of(tokenizer)
    with locked.lock:
        return locked.turn_end(tokenizer, chat).id


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answers: Sequence[str], chat: ChatFormat = AS_SENT
) -> EncodedAnswers:
    """Encode a prompt as :func:`encode_prompt` does, and answers to follow it.

    A chat template writes each answer, with what it puts before one (an empty ``<think>`` block) and after it. Where
    the generation prompt opens what a given answer lacks, the prompt ends before that.

    Raises:
        InvalidRequest: The template refuses the dialogue, or a word-level tokenizer reads an answer as special.
    """
    if not tokenizer.chat_template:
        before = encode_prompt(tokenizer, prompt)
        ends = [tokenizer.eos_token_id]
        return EncodedAnswers(before, [encode_continuation(tokenizer, prompt, one) + ends for one in answers])
    locked = LockedTokenizer.of(tokenizer)
    with locked.lock:
        try:
            return _encode_turns(locked, tokenizer, prompt, answers, chat)
        except (TemplateFailed, ValueError) as error:
            raise template_refusal(error, chat) from error


def encode_continuation(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, text: str) -> list[int]:
    """Encode a plain text to follow a plain prompt, without the end of sequence.

    Both are encoded together, so that the first word gets the same token as in running text, unless a token would span
    the boundary.
    """
    before_text = as_messages(prompt)[-1]["content"]  # the only message: encode_prompt takes no other dialogue
    with LockedTokenizer.of(tokenizer).lock:
        alone, before = encode_plain(tokenizer, text), encode_plain(tokenizer, before_text)
        joint = tokenizer(
            before_text + text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
    boundary, seam = len(before), len(before_text)
    splits = all(end <= seam for _, end in joint.offset_mapping[:boundary]) and all(
        start >= seam for start, _ in joint.offset_mapping[boundary:]
    )
    return list(joint.input_ids[boundary:]) if splits and joint.input_ids[:boundary] == before else alone


def _encode_turns(
    locked: LockedTokenizer,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    answers: Sequence[str],
    chat: ChatFormat,
) -> EncodedAnswers:
    end, dialogue = locked.turn_end(tokenizer, chat), as_messages(prompt)
    prefix = locked.render(tokenizer, dialogue, chat)
    if end.rest is None:  # the template does not show an answer at a dialogue's end
        return EncodedAnswers(
            encode_rendered(tokenizer, prefix), [[*encode_plain(tokenizer, one), end.id] for one in answers]
        )
    given = [[*dialogue, {"role": "assistant", "content": one}] for one in answers]
    turns = [locked.render(tokenizer, messages, chat, answered=True).removesuffix(end.rest) for messages in given]
    start = commonprefix([prefix, *turns])  # noqa: RUF071 texts, not paths
    before = encode_rendered(tokenizer, start)
    return EncodedAnswers(before, [[*_follow(tokenizer, start, before, turn + end.text), end.id] for turn in turns])


def _follow(tokenizer: PreTrainedTokenizerBase, start: str, before: list[int], turn: str) -> list[int]:
    """Encode what ``turn`` adds to ``start``, as in running text unless a token would span the boundary."""
    joint = encode_rendered(tokenizer, turn)
    return joint[len(before) :] if joint[: len(before)] == before else encode_rendered(tokenizer, turn[len(start) :])
