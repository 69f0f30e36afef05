"""From text to token ids, the same way in training, evaluation and serving.

User text never becomes a special token: ``</s>`` or ``<|im_start|>`` in a prompt is encoded as the characters it is
made of. A chat template brings its own beginning-of-sequence token, so none is added beside it (trap T15).
"""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from armature.contracts.datasets import Prompt
from armature.errors import InvalidRequest
from armature.modeling.tokenization.chat_templates import ChatTemplate, TemplateFailed


class _Encoding:
    """What goes with one tokenizer. Fast tokenizers keep the special-token switch on the shared object, so two threads
    must not encode with one at once; tokenizers do not wait for each other."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._template: ChatTemplate | None = None

    def template(self, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        """The tokenizer's present template; call it under the lock."""
        if self._template is None or self._template.text != tokenizer.chat_template:
            self._template = ChatTemplate(tokenizer.chat_template, dict(tokenizer.special_tokens_map))
        return self._template


_encodings: WeakKeyDictionary[PreTrainedTokenizerBase, _Encoding] = WeakKeyDictionary()
_lookup = threading.Lock()


def _encoding(tokenizer: PreTrainedTokenizerBase) -> _Encoding:
    with _lookup:
        return _encodings.setdefault(tokenizer, _Encoding())


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a plain prompt: beginning-of-sequence if the tokenizer adds one, then the text, never an end.

    Raises:
        InvalidRequest: The text has no tokens, or it spells a special token of a tokenizer that knows words only.
    """
    with _encoding(tokenizer).lock:
        empty = tokenizer("", add_special_tokens=True).input_ids
        begins = tokenizer.bos_token_id is not None and empty[:1] == [tokenizer.bos_token_id]
        ids = _encode_plain(tokenizer, text)
    if not (begins or ids):
        raise InvalidRequest("the prompt has no tokens", param="prompt")
    return [*empty[:1], *ids] if begins else ids


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """The ids of a dialogue under the model's own chat template, ending where the assistant begins to speak.

    A model without a template takes one user message, as plain text: any other dialogue would need an invented
    format.

    Raises:
        InvalidRequest: The template refuses the dialogue, or there is no template and it is not one user message.
    """
    if not tokenizer.chat_template:
        if [message["role"] for message in messages] != ["user"]:
            raise InvalidRequest("this model has no chat template: send one user message", param="messages")
        return encode_text(tokenizer, messages[0]["content"])
    encoding = _encoding(tokenizer)
    with encoding.lock:
        try:
            return _encode_dialogue(tokenizer, encoding.template(tokenizer), messages)
        except (TemplateFailed, ValueError) as error:
            message = f"the model's chat template refuses the dialogue: {error}"
            raise InvalidRequest(message, param="messages") from error


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The ids of a data set's prompt; text is one user turn, or plain text for a model without a chat template."""
    return encode_chat(tokenizer, as_messages(prompt))


def encode_completion(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: str) -> list[int]:
    """The ids that a model should produce after :func:`encode_prompt`, without the end of sequence.

    For plain text, prompt and completion are encoded together, so that the completion's first word gets the same
    token as in running text; where that would merge the two across the seam, the completion is encoded alone
    (trap T14). After a chat template it always is.
    """
    with _encoding(tokenizer).lock:
        alone = _encode_plain(tokenizer, completion)
        if tokenizer.chat_template:
            return alone
        text = as_messages(prompt)[-1]["content"]  # the only message: encode_prompt takes no other dialogue
        before = _encode_plain(tokenizer, text)
        joint = tokenizer(
            text + completion, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
    seam = len(before)
    splits = all(end <= len(text) for _, end in joint.offset_mapping[:seam]) and all(
        start >= len(text) for start, _ in joint.offset_mapping[seam:]
    )
    return list(joint.input_ids[seam:]) if splits and joint.input_ids[:seam] == before else alone


def as_messages(prompt: Prompt) -> list[dict[str, str]]:
    """A data set's prompt as a dialogue: text is one user turn."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [message.model_dump() for message in prompt]


def _encode_dialogue(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, messages: list[dict[str, str]]
) -> list[int]:
    """``apply_chat_template`` with the rendering done elsewhere: control tokens in the users' words are marked first,
    and encoded as text."""
    (marked,), *_ = tokenizer._mark_chat_inputs(tokenizer.chat_template, [messages], None, None, {}, True, False)
    ids: list[int] = tokenizer(
        template.render(marked), add_special_tokens=False, sanitize_control_tokens=True
    ).input_ids
    return list(ids)


def _encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text's own ids. A word-level vocabulary lists its special tokens as words, so those are looked for."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    if found := special.intersection(ids):
        token = tokenizer.convert_ids_to_tokens(min(found))
        raise InvalidRequest(
            f"the text contains {token!r}, which this model can not read as plain text", param="prompt"
        )
    return ids
