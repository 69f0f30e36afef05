"""From what a client sends to the ids that are generated from: measured first, then read, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from armature.errors import ContextLengthExceeded, InvalidRequest
from armature.inference.request import GuidedRequest
from armature.modeling.tokenization.instructions import encode_instructed_chat, encode_instructed_text
from armature.modeling.tokenization.prompts import encode_chat, encode_text
from armature_decoder.bundles.loader import LoadedBundle
from armature_decoder.guidance.base import StagePlan

_CHARS_PER_TOKEN = 8
"""No tokenizer in use makes texts shorter than this, so a longer one is refused unread."""


@dataclass(frozen=True)
class Prompt:
    """One prompt: the field that holds it, its size and how many of those a token may take, and how it is read.

    ``read`` gives the ids, ``read_below`` those below an instruction. ``echo`` is the text that an echo shows; None:
    what the ids say.
    """

    param: str
    size: int
    unit: str
    size_per_token: int
    read: Callable[[PreTrainedTokenizerBase], list[int]]
    read_below: Callable[[str, PreTrainedTokenizerBase], list[int]]
    echo: str | None


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's ids, how many tokens may follow, and the text of its echo.

    ``instructed`` are the ids below an instruction, ``arm`` those that an ARM on a model of its own reads; empty where
    there is no such thing.
    """

    ids: tuple[int, ...]
    instructed: tuple[int, ...]
    arm: tuple[int, ...]
    echo: str
    max_tokens: int = 0


def chat_prompt(messages: list[dict[str, str]]) -> Prompt:
    """A dialogue; it has no echo."""
    return Prompt(
        "messages",
        sum(len(message["content"]) for message in messages),
        "characters",
        _CHARS_PER_TOKEN,
        read=lambda tokenizer: encode_chat(tokenizer, messages),
        read_below=lambda instruction, tokenizer: encode_instructed_chat(tokenizer, messages, instruction),
        echo="",
    )


def text_prompt(prompt: str | list[int], param: str) -> Prompt:
    """A text to continue. Ids are taken as they are, those of special tokens included: they can not be mistaken."""
    unit, per_token = ("characters", _CHARS_PER_TOKEN) if isinstance(prompt, str) else ("tokens", 1)
    return Prompt(
        param,
        len(prompt),
        unit,
        per_token,
        read=lambda tokenizer: encode_text(tokenizer, prompt) if isinstance(prompt, str) else prompt,
        read_below=lambda instruction, tokenizer: encode_instructed_text(tokenizer, prompt, instruction),
        echo=prompt if isinstance(prompt, str) else None,
    )


async def encode_prompt(
    prompt: Prompt, plan: StagePlan, bundle: LoadedBundle, max_tokens: int | None, most: int
) -> EncodedPrompt:
    """Read a prompt, if it can fit at all.

    Args:
        prompt: As it was sent.
        plan: What steers its answer: each stream more leaves less context to all.
        bundle: Who reads it.
        max_tokens: How many tokens are asked for; None: as many as fit, up to ``most``.
        most: How many may be asked for.

    Raises:
        ContextLengthExceeded: It and the tokens asked for do not fit into the model's context, or into the memory that
            is set aside for keys and values, alone.
        InvalidRequest: It has no tokens, the model can not read it, or too many are asked for.
    """
    asked = GuidedRequest(prompt=(), max_tokens=0, **plan.sequence)
    context, needed = bundle.context_of(asked), 1 if max_tokens is None else max_tokens
    if prompt.size > prompt.size_per_token * context:
        raise ContextLengthExceeded(
            f"the prompt has {prompt.size} {prompt.unit}; the context is {context} tokens", param=prompt.param
        )
    read = partial(_read, prompt, plan.instruction, bundle)
    encoded = await asyncio.get_running_loop().run_in_executor(bundle.encoding, read)
    if not encoded.ids:
        raise InvalidRequest("the prompt has no tokens", param=prompt.param)
    asked = replace(asked, prompt=encoded.ids, instructed_prompt=encoded.instructed, arm_prompt=encoded.arm)
    context, longest = bundle.context_of(asked), asked.longest_prompt
    left = context - longest
    if left < needed:
        what = "prompt and instruction have" if len(encoded.instructed) == longest else "the prompt has"
        raise ContextLengthExceeded(
            f"{what} {longest} tokens and {needed} are asked for; the context is {context}", param=prompt.param
        )
    if needed > most:
        raise InvalidRequest(f"must not exceed {most}", param="max_tokens")
    return replace(encoded, max_tokens=min(left, most) if max_tokens is None else max_tokens)


def _read(prompt: Prompt, instruction: str | None, bundle: LoadedBundle) -> EncodedPrompt:
    """In the bundle's own thread: templates and long texts take their time."""
    ids = prompt.read(bundle.tokenizer)
    check_ids(ids, bundle, prompt.param)
    below = [] if instruction is None else prompt.read_below(instruction, bundle.tokenizer)
    check_ids(below, bundle, "sda.instruction")
    arm = [] if bundle.arm_tokenizer is None else prompt.read(bundle.arm_tokenizer)
    echo = prompt.echo
    if echo is None:
        echo = bundle.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return EncodedPrompt(tuple(ids), tuple(below), tuple(arm), str(echo))


def check_ids(ids: list[int], bundle: LoadedBundle, param: str) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        InvalidRequest: Naming the field.
    """
    if max(ids, default=0) >= bundle.model.vocab_size:
        raise InvalidRequest(f"token ids must be below {bundle.model.vocab_size}", param=param)
