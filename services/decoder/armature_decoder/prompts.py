"""From a client's prompt to token ids: size check first, then encoding, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from transformers import PreTrainedTokenizerBase

from armature.contracts.chat import ChatFormat
from armature.errors import ContextLengthExceeded, InvalidRequest
from armature.modeling.tokenization.instructions import encode_instructed_chat, encode_instructed_text
from armature.modeling.tokenization.prompts import encode_chat, encode_text
from armature_decoder.bundles.loader import LoadedBundle
from armature_decoder.guidance.base import GuidancePlan

_SIZE_PER_TOKEN = {"characters": 8, "tokens": 1}
"""A prompt of more than so much for each token of the context is refused before it is encoded, which takes time.

Text has about 4 characters a token. A tokenizer with long tokens (of a hundred spaces, say) could fit more; such a text
is refused all the same.
"""


@dataclass(frozen=True)
class Prompt:
    """One prompt as it was sent: the field that holds it, its size, and how it is encoded.

    ``encode`` gives the ids, ``encode_instructed`` those below an instruction. ``echo`` is the text of an echo; None:
    the decoded ids.
    """

    param: str
    size: int
    unit: Literal["characters", "tokens"]
    encode: Callable[[PreTrainedTokenizerBase, ChatFormat], list[int]]
    encode_instructed: Callable[[str, PreTrainedTokenizerBase, ChatFormat], list[int]]
    echo: str | None


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's ids, the number of tokens that may follow, and the text of its echo.

    ``instructed`` are the ids below an instruction, ``arm`` those of an ARM on a model of its own; empty without one.
    """

    ids: tuple[int, ...]
    instructed: tuple[int, ...]
    arm: tuple[int, ...]
    echo: str
    max_tokens: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest of the encodings."""
        return max(len(self.ids), len(self.instructed), len(self.arm))


def chat_prompt(messages: list[dict[str, str]]) -> Prompt:
    """Make a prompt of a dialogue; it has no echo."""
    return Prompt(
        "messages",
        sum(len(message["content"]) for message in messages),
        "characters",
        encode=lambda tokenizer, chat: encode_chat(tokenizer, messages, chat),
        encode_instructed=lambda text, tokenizer, chat: encode_instructed_chat(tokenizer, messages, text, chat),
        echo="",
    )


def text_prompt(prompt: str | list[int], param: str) -> Prompt:
    """Make a prompt of a text to continue. Ids are taken as they are, those of special tokens included."""
    return Prompt(
        param,
        len(prompt),
        "characters" if isinstance(prompt, str) else "tokens",
        encode=lambda tokenizer, chat: encode_text(tokenizer, prompt) if isinstance(prompt, str) else prompt,
        encode_instructed=lambda text, tokenizer, chat: encode_instructed_text(tokenizer, prompt, text),
        echo=prompt if isinstance(prompt, str) else None,
    )


async def encode_prompt(
    prompt: Prompt, plan: GuidancePlan, bundle: LoadedBundle, max_tokens: int | None, limit: int
) -> EncodedPrompt:
    """Encode a prompt, if it can fit at all.

    Args:
        prompt: As it was sent.
        plan: What guides the answer: each further stream leaves less memory to all.
        bundle: The model and its tokenizer.
        max_tokens: Tokens asked for; None: as many as fit, up to ``limit``.
        limit: The most tokens that may be asked for.

    Raises:
        ContextLengthExceeded: It and the tokens asked for do not fit into the model's context, or into the memory that
            is set aside for keys and values, alone.
        InvalidRequest: It has no tokens, the model can not encode it, or too many tokens are asked for.
    """
    streams, needed = plan.stream_count, 1 if max_tokens is None else max_tokens
    context = bundle.context_of(streams)
    if prompt.size > _SIZE_PER_TOKEN[prompt.unit] * context:
        raise ContextLengthExceeded(
            f"the prompt has {prompt.size} {prompt.unit}; the context is {context} tokens", param=prompt.param
        )
    encode = partial(_encode, prompt, plan, bundle)
    encoded = await asyncio.get_running_loop().run_in_executor(bundle.encoding, encode)
    if not encoded.ids:
        raise InvalidRequest("the prompt has no tokens", param=prompt.param)
    context = bundle.context_of(streams, encoded.longest)
    room = context - encoded.longest
    if room < needed:
        what = "prompt and instruction have" if len(encoded.instructed) == encoded.longest else "the prompt has"
        raise ContextLengthExceeded(
            f"{what} {encoded.longest} tokens and {needed} are asked for; the context is {context}", param=prompt.param
        )
    if needed > limit:
        raise InvalidRequest(f"must not exceed {limit}", param="max_tokens")
    return replace(encoded, max_tokens=min(room, limit) if max_tokens is None else max_tokens)


def _encode(prompt: Prompt, plan: GuidancePlan, bundle: LoadedBundle) -> EncodedPrompt:
    """Encode on the bundle's own thread: templates and long texts take their time."""
    instruction, chat = plan.instruction_text, plan.chat
    ids = prompt.encode(bundle.tokenizer, chat)
    check_ids(ids, bundle, prompt.param)
    instructed = [] if instruction is None else prompt.encode_instructed(instruction, bundle.tokenizer, chat)
    check_ids(instructed, bundle, "sda.instruction")
    arm = [] if bundle.arm_tokenizer is None else prompt.encode(bundle.arm_tokenizer, chat)
    echo = prompt.echo
    if echo is None:
        echo = bundle.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return EncodedPrompt(tuple(ids), tuple(instructed), tuple(arm), str(echo))


def check_ids(ids: list[int], bundle: LoadedBundle, param: str) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        InvalidRequest: Naming the field.
    """
    if max(ids, default=0) >= bundle.model.vocab_size:
        raise InvalidRequest(f"token ids must be below {bundle.model.vocab_size}", param=param)
