"""From what a client sends to the ids that are generated from: measured first, then read, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from armature.errors import ContextLengthExceeded, InvalidRequest
from armature.modeling.prompts import encode_chat, encode_text
from armature_decoder.bundles.loader import LoadedBundle

_CHARS_PER_TOKEN = 8
"""No tokenizer in use makes texts shorter than this, so a longer one is refused unread."""


@dataclass(frozen=True)
class Prompt:
    """One prompt: the field that holds it, its size and how many of those a token may take, and how it is read.

    ``read`` gives the ids and the text that an echo shows.
    """

    param: str
    size: int
    unit: str
    size_per_token: int
    read: Callable[[LoadedBundle], tuple[list[int], str]]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's ids, how many tokens may follow, and the text of its echo."""

    ids: tuple[int, ...]
    max_tokens: int
    echo: str


def chat_prompt(messages: list[dict[str, str]]) -> Prompt:
    """A dialogue; it has no echo."""
    size = sum(len(message["content"]) for message in messages)
    return Prompt(
        "messages", size, "characters", _CHARS_PER_TOKEN, lambda bundle: (encode_chat(bundle.tokenizer, messages), "")
    )


def text_prompt(prompt: str | list[int], param: str) -> Prompt:
    """A text to continue. Ids are taken as they are, those of special tokens included: they can not be mistaken."""
    if isinstance(prompt, str):
        return Prompt(
            param,
            len(prompt),
            "characters",
            _CHARS_PER_TOKEN,
            lambda bundle: (encode_text(bundle.tokenizer, prompt), prompt),
        )

    def read(bundle: LoadedBundle) -> tuple[list[int], str]:
        check_ids(prompt, bundle, param)
        echo = bundle.tokenizer.decode(prompt, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return prompt, str(echo)

    return Prompt(param, len(prompt), "tokens", 1, read)


async def encode_prompt(prompt: Prompt, bundle: LoadedBundle, max_tokens: int | None, most: int) -> EncodedPrompt:
    """Read a prompt, if it can fit at all.

    Args:
        prompt: As it was sent.
        bundle: Who reads it.
        max_tokens: How many tokens are asked for; None: as many as fit, up to ``most``.
        most: How many may be asked for.

    Raises:
        ContextLengthExceeded: It and the tokens asked for do not fit into the model's context.
        InvalidRequest: It has no tokens, the model can not read it, or too many are asked for.
    """
    context, needed = bundle.context_length, 1 if max_tokens is None else max_tokens
    if prompt.size > prompt.size_per_token * context:
        raise ContextLengthExceeded(
            f"the prompt has {prompt.size} {prompt.unit}; the context is {context} tokens", param=prompt.param
        )
    ids, echo = await asyncio.get_running_loop().run_in_executor(bundle.encoding, prompt.read, bundle)
    if not ids:
        raise InvalidRequest("the prompt has no tokens", param=prompt.param)
    left = context - len(ids)
    if left < needed:
        raise ContextLengthExceeded(
            f"the prompt has {len(ids)} tokens and {needed} are asked for; the context is {context}",
            param=prompt.param,
        )
    if needed > most:
        raise InvalidRequest(f"must not exceed {most}", param="max_tokens")
    return EncodedPrompt(tuple(ids), min(left, most) if max_tokens is None else max_tokens, echo)


def check_ids(ids: list[int], bundle: LoadedBundle, param: str) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        InvalidRequest: Naming the field.
    """
    if max(ids, default=0) >= bundle.model.vocab_size:
        raise InvalidRequest(f"token ids must be below {bundle.model.vocab_size}", param=param)
