"""A prompt below an instruction: in the system message of a dialogue, before a plain text."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from armature.contracts.datasets import Prompt
from armature.errors import InvalidRequest
from armature.modeling.tokenization.prompts import as_messages, encode_chat, encode_text

_SEAM = "\n\n"
_PARAM = "sda.instruction"


def encode_instructed_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], instruction: str
) -> list[int]:
    """The ids of a dialogue whose system message ends with the instruction; it gets one if it has none.

    Raises:
        InvalidRequest: The model's chat template takes no system message, or the instruction is not plain text.
    """
    first, *rest = messages
    if not tokenizer.chat_template or first["role"] in ("system", "developer"):
        order = (first["content"], instruction) if tokenizer.chat_template else (instruction, first["content"])
        told = [{**first, "content": _SEAM.join(order)}, *rest]
    else:
        told = [{"role": "system", "content": instruction}, *messages]
    try:
        return encode_chat(tokenizer, told)
    except InvalidRequest as error:
        raise _not_read(error) from error


def encode_instructed_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, instruction: str) -> list[int]:
    """The ids of a data set's prompt below the instruction; raises as :func:`encode_instructed_chat` does."""
    return encode_instructed_chat(tokenizer, as_messages(prompt), instruction)


def encode_instructed_text(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[int], instruction: str
) -> list[int]:
    """The ids of a text, or given ids, that come after the instruction.

    Raises:
        InvalidRequest: The model can not read the instruction as plain text.
    """
    try:
        if isinstance(prompt, str):
            return encode_text(tokenizer, f"{instruction}{_SEAM}{prompt}")
        begins = prompt[0] == tokenizer.bos_token_id
        return [*encode_text(tokenizer, f"{instruction}{_SEAM}"), *prompt[begins:]]
    except InvalidRequest as error:
        raise _not_read(error) from error


def _not_read(error: InvalidRequest) -> InvalidRequest:
    return InvalidRequest(f"below the instruction: {error.message}", param=_PARAM, code=error.error_code)
