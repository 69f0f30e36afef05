"""Encoding of a prompt with an instruction: in a dialogue's system message, or before a plain text."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from armature.contracts.chat import AS_SENT, ChatFormat
from armature.contracts.datasets import Prompt
from armature.errors import InvalidRequest
from armature.modeling.tokenization.dialogues import SYSTEM_ROLES, Messages, as_messages, join
from armature.modeling.tokenization.prompts import encode_chat, encode_text

_PARAM = "sda.instruction"


def encode_instructed_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    instruction: str,
    chat: ChatFormat = AS_SENT,
) -> list[int]:
    """Encode a dialogue with the instruction at the end of its system message, added if there is none.

    Raises:
        InvalidRequest: The model's chat template takes no system message, or the instruction is not plain text.
    """
    try:
        return encode_chat(tokenizer, instruct(messages, instruction, plain=not tokenizer.chat_template), chat)
    except InvalidRequest as error:
        raise _for_instruction(error) from error


def instruct(messages: Sequence[dict[str, str]], instruction: str, *, plain: bool = False) -> Messages:
    """Return the dialogue with the instruction at the end of its system message, added if there is none.

    Args:
        messages: The dialogue.
        instruction: The instruction.
        plain: Whether the model reads plain text; the instruction then comes before the text of the one message.
    """
    first, *rest = messages
    if plain:
        return [{**first, "content": join(instruction, first["content"])}, *rest]
    if first["role"] in SYSTEM_ROLES:
        return [{**first, "content": join(first["content"], instruction)}, *rest]
    return [{"role": "system", "content": instruction}, *messages]


def encode_instructed_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, instruction: str, chat: ChatFormat = AS_SENT
) -> list[int]:
    """Encode a data set's prompt with the instruction; raises as :func:`encode_instructed_chat` does."""
    return encode_instructed_chat(tokenizer, as_messages(prompt), instruction, chat)


def encode_instructed_text(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[int], instruction: str
) -> list[int]:
    """Encode the instruction followed by a text or by token ids.

    Raises:
        InvalidRequest: The model can not read the instruction as plain text.
    """
    try:
        if isinstance(prompt, str):
            return encode_text(tokenizer, join(instruction, prompt))
        has_bos = prompt[0] == tokenizer.bos_token_id
        return [*encode_text(tokenizer, join(instruction, "")), *prompt[has_bos:]]
    except InvalidRequest as error:
        raise _for_instruction(error) from error


def _for_instruction(error: InvalidRequest) -> InvalidRequest:
    return InvalidRequest(f"with the instruction: {error.message}", param=_PARAM, code=error.error_code)
