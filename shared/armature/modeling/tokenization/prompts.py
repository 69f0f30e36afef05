"""Encoding of prompts and completions, equal in training, evaluation and serving, and thread-safe.

User text never becomes a special token: ``</s>`` or ``<|im_start|>`` in a prompt is encoded as its characters. A chat
template writes its own beginning-of-sequence token, so none is added to it.
"""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from armature.contracts.datasets import Prompt
from armature.errors import InvalidRequest
from armature.modeling.tokenization.chat_templates import ChatTemplate, TemplateFailed


class _TokenizerState:
    """The lock and the chat template's process of one tokenizer.

    A fast tokenizer keeps settings of a call, such as whether text may contain special tokens, in the shared object, so
    two threads must not encode with it at once. Callers need no lock of their own; decoding needs none at all.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._template: ChatTemplate | None = None

    def template(self, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        """Return the tokenizer's current template; the caller holds the lock."""
        if self._template is None or self._template.text != tokenizer.chat_template:
            self._template = ChatTemplate(tokenizer.chat_template, dict(tokenizer.special_tokens_map))
        return self._template


_states: WeakKeyDictionary[PreTrainedTokenizerBase, _TokenizerState] = WeakKeyDictionary()
_states_lock = threading.Lock()


def _state_of(tokenizer: PreTrainedTokenizerBase) -> _TokenizerState:
    with _states_lock:
        return _states.setdefault(tokenizer, _TokenizerState())


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a plain prompt, with beginning-of-sequence if the tokenizer adds one, and without an end.

    Raises:
        InvalidRequest: The text has no tokens, or spells a special token of a word-level tokenizer.
    """
    with _state_of(tokenizer).lock:
        empty = tokenizer("", add_special_tokens=True).input_ids
        has_bos = tokenizer.bos_token_id is not None and empty[:1] == [tokenizer.bos_token_id]
        ids = _encode_plain(tokenizer, text)
    if not (has_bos or ids):
        raise InvalidRequest("the prompt has no tokens", param="prompt")
    return [*empty[:1], *ids] if has_bos else ids


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """Encode a dialogue with the model's own chat template, ending with the generation prompt.

    A model without a template takes one user message, as plain text: any other dialogue would need an invented format.

    Raises:
        InvalidRequest: The template refuses the dialogue, or there is no template and it is not one user message.
    """
    if not tokenizer.chat_template:
        if [message["role"] for message in messages] != ["user"]:
            raise InvalidRequest("this model has no chat template: send one user message", param="messages")
        return encode_text(tokenizer, messages[0]["content"])
    state = _state_of(tokenizer)
    with state.lock:
        try:
            return _encode_dialogue(tokenizer, state.template(tokenizer), messages)
        except (TemplateFailed, ValueError) as error:
            message = f"the model's chat template refuses the dialogue: {error}"
            raise InvalidRequest(message, param="messages") from error


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Encode a data set's prompt; text is one user message, or plain text without a chat template."""
    return encode_chat(tokenizer, as_messages(prompt))


def encode_completion(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: str) -> list[int]:
    """Encode a completion to follow :func:`encode_prompt`, without the end of sequence.

    For plain text, prompt and completion are encoded together, so that the completion's first word gets the same token
    as in running text. If a token would span the boundary, or with a chat template, the completion is encoded alone.
    """
    with _state_of(tokenizer).lock:
        alone = _encode_plain(tokenizer, completion)
        if tokenizer.chat_template:
            return alone
        text = as_messages(prompt)[-1]["content"]  # the only message: encode_prompt takes no other dialogue
        before = _encode_plain(tokenizer, text)
        joint = tokenizer(
            text + completion, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
    boundary = len(before)
    splits = all(end <= len(text) for _, end in joint.offset_mapping[:boundary]) and all(
        start >= len(text) for start, _ in joint.offset_mapping[boundary:]
    )
    return list(joint.input_ids[boundary:]) if splits and joint.input_ids[:boundary] == before else alone


def as_messages(prompt: Prompt) -> list[dict[str, str]]:
    """Convert a data set's prompt to a dialogue: text is one user message."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [message.model_dump() for message in prompt]


def _encode_dialogue(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, messages: list[dict[str, str]]
) -> list[int]:
    """Encode as ``apply_chat_template`` does, with the rendering in the template's process.

    Control tokens in the messages' text are marked first, and then encoded as text.
    """
    (marked,), *_ = tokenizer._mark_chat_inputs(tokenizer.chat_template, [messages], None, None, {}, True, False)
    ids: list[int] = tokenizer(
        template.render(marked), add_special_tokens=False, sanitize_control_tokens=True
    ).input_ids
    return list(ids)


def _encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a text without special tokens; a word-level vocabulary has them as words, so refuse those."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    if found := special.intersection(ids):
        token = tokenizer.convert_ids_to_tokens(min(found))
        raise InvalidRequest(
            f"the text contains {token!r}, which this model can not read as plain text", param="prompt"
        )
    return ids
