"""Encoding of prompts, equal in training, evaluation and serving, and thread-safe.

User text never becomes a special token: ``</s>`` or ``<|im_start|>`` in a prompt is encoded as its characters. A chat
template writes its own beginning-of-sequence token, so none is added to it.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from armature.contracts.chat import AS_SENT, ChatFormat
from armature.contracts.datasets import Prompt
from armature.errors import InvalidRequest
from armature.modeling.tokenization.chat_templates import TemplateFailed
from armature.modeling.tokenization.dialogues import Messages, as_messages
from armature.modeling.tokenization.rendering import (
    LockedTokenizer,
    encode_plain,
    encode_rendered,
    template_refusal,
)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a plain prompt, with beginning-of-sequence if the tokenizer adds one, and without an end.

    Raises:
        InvalidRequest: The text has no tokens, or spells a special token of a word-level tokenizer.
    """
    with LockedTokenizer.of(tokenizer).lock:
        empty = tokenizer("", add_special_tokens=True).input_ids
        has_bos = tokenizer.bos_token_id is not None and empty[:1] == [tokenizer.bos_token_id]
        ids = encode_plain(tokenizer, text)
    if not (has_bos or ids):
        raise InvalidRequest("the prompt has no tokens", param="prompt")
    return [*empty[:1], *ids] if has_bos else ids


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Messages, chat: ChatFormat = AS_SENT) -> list[int]:
    """Encode a dialogue with the model's own chat template, ending with the generation prompt.

    A model without a template takes one user message, as plain text: any other dialogue would need an invented format.

    Raises:
        InvalidRequest: The template refuses the dialogue, or there is no template and it is not one user message.
    """
    if not tokenizer.chat_template:
        if [message["role"] for message in messages] != ["user"]:
            raise InvalidRequest("this model has no chat template: send one user message", param="messages")
        return encode_text(tokenizer, messages[0]["content"])
    locked = LockedTokenizer.of(tokenizer)
    with locked.lock:
        try:
            return encode_rendered(tokenizer, locked.render(tokenizer, messages, chat))
        except (TemplateFailed, ValueError) as error:
            raise template_refusal(error, chat) from error


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, chat: ChatFormat = AS_SENT) -> list[int]:
    """Encode a data set's prompt; text is one user message, or plain text without a chat template."""
    return encode_chat(tokenizer, as_messages(prompt), chat)
