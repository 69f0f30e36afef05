"""Dialogues rendered by a tokenizer's chat template and encoded, thread-safe.

User text never becomes a special token: control tokens in messages are marked before the template sees them, and
encoded as their characters.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import (
    _CONTROL_TOKEN_END,
    _CONTROL_TOKEN_START,
    _get_control_token_patterns,
    mark_control_tokens,
)

from armature.contracts.base import digest
from armature.contracts.chat import ChatFormat
from armature.errors import InvalidRequest
from armature.modeling.tokenization.chat_templates import ChatTemplate, TemplateFailed
from armature.modeling.tokenization.dialogues import Messages, shape_turns

_PROBE = "armature7answer"
"""An answer that no template contains, in characters that no template changes."""


@dataclass(frozen=True)
class TurnEnd:
    """How an assistant's turn ends: ``text``, then the token ``id``, both at the start of ``rest``."""

    id: int
    text: str = ""
    rest: str | None = None
    """All that follows an answer at a dialogue's end; None: the template does not tell."""


class LockedTokenizer:
    """A tokenizer's lock, the process of its chat template, and how its turns end.

    A fast tokenizer keeps settings of a call, such as whether text may contain special tokens, in the shared object, so
    two threads must not encode with it at once. Every method but :meth:`of` needs the lock.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._template: ChatTemplate | None = None
        self._control_tokens = re.compile("(?!)")
        """Matches those of the template; kept, since a tokenizer takes 50 ms to list thousands of added tokens."""
        self._ends: dict[str, TurnEnd] = {}

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> LockedTokenizer:
        """Return the one object of this tokenizer."""
        with _states_lock:
            return _states.setdefault(tokenizer, cls())

    def render(
        self, tokenizer: PreTrainedTokenizerBase, messages: Messages, chat: ChatFormat, *, answered: bool = False
    ) -> str:
        """Render a dialogue with control tokens marked, ending with the generation prompt unless ``answered``.

        Raises:
            TemplateFailed: The template refuses the dialogue.
        """
        template = self._of(tokenizer)
        given = mark_control_tokens([shape_turns(messages, chat), chat.template_kwargs], self._control_tokens)
        return template.render(*given, date=chat.date, answered=answered)

    def turn_end(self, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> TurnEnd:
        """Find how the template ends an assistant's turn, by rendering one; without one: in ``eos_token``."""
        if not tokenizer.chat_template:
            return TurnEnd(tokenizer.eos_token_id)
        key = digest([tokenizer.chat_template, chat.model_dump(mode="json")])
        if key not in self._ends:
            self._ends[key] = self._probe_end(tokenizer, chat)
        return self._ends[key]

    def _probe_end(self, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> TurnEnd:
        dialogue = [{"role": "user", "content": "text"}, {"role": "assistant", "content": _PROBE}]
        try:
            _, found, rest = self.render(tokenizer, dialogue, chat, answered=True).rpartition(_PROBE)
        except TemplateFailed:
            return TurnEnd(tokenizer.eos_token_id)
        if not found:
            return TurnEnd(tokenizer.eos_token_id)
        tokens = {
            token.content: id for id, token in tokenizer.added_tokens_decoder.items() if not token.content.isspace()
        }
        ends = [(rest.find(content), -len(content), content) for content in tokens if content in rest]
        if not ends:
            return TurnEnd(tokenizer.eos_token_id, "", rest)
        position, _, content = min(ends)
        return TurnEnd(tokens[content], rest[:position], rest)

    def _of(self, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        if self._template is None or self._template.text != tokenizer.chat_template:
            self._control_tokens, _ = _get_control_token_patterns(
                tokenizer._get_control_tokens(tokenizer.chat_template)
            )
            self._template = ChatTemplate(tokenizer.chat_template, dict(tokenizer.special_tokens_map))
        return self._template


_states: WeakKeyDictionary[PreTrainedTokenizerBase, LockedTokenizer] = WeakKeyDictionary()
_states_lock = threading.Lock()


def encode_rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a rendered dialogue: the template's special tokens count, those that messages spell do not."""
    marked = _CONTROL_TOKEN_START in text or _CONTROL_TOKEN_END in text
    return list(
        tokenizer(text, add_special_tokens=False, **({"sanitize_control_tokens": True} if marked else {})).input_ids
    )


def encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a text without special tokens; a word-level vocabulary has them as words, so refuse those.

    Raises:
        InvalidRequest: The text spells such a word.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    if found := special.intersection(ids):
        token = tokenizer.convert_ids_to_tokens(min(found))
        raise InvalidRequest(
            f"the text contains {token!r}, which this model can not read as plain text", param="prompt"
        )
    return ids


def template_refusal(error: Exception, chat: ChatFormat) -> InvalidRequest:
    """Make the error of a dialogue that the chat template does not take, with the remedy if there is one."""
    message = f"the model's chat template refuses the dialogue: {error}"
    remedy = "" if chat.turns == "alternating" else "; turns: alternating, in the setting chat, joins what it refuses"
    return InvalidRequest(f"{message}{remedy}", param="messages")
