"""From token ids to the text that a client sees, piece by piece: whole characters only, and nothing past a stop."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "�"
_LONGEST_CHARACTER = 8
"""Tokens that one character may take; a longer run of undecodable bytes is let go as it is."""
_CONTEXT = 8


class Detokenizer:
    """Text of a growing sequence. A token that ends inside a character is held back until the character is whole.

    Args:
        tokenizer: Of the model.
        prefix: Ids that came before, for tokenizers whose text depends on the left neighbour (a leading space).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prefix: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prefix[-_CONTEXT:])
        self._start = 0  # decoding begins here: the ids before are text already, and only give context
        self._told = len(self._ids)

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._ids.append(token)
        return self._advance(final=len(self._ids) - self._told > _LONGEST_CHARACTER)

    def flush(self) -> str:
        """What is still held back, with replacement characters for what never became whole."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        before = self._decode(self._ids[self._start : self._told])
        now = self._decode(self._ids[self._start :])
        if now.endswith(_REPLACEMENT) and not final:
            return ""
        self._start, self._told = self._told, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class StopStrings:
    """Cuts a text at the first stop string, also one that spans several pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.hit = False

    def push(self, piece: str) -> str:
        """What may be shown by now; a tail that could become a stop string is held back."""
        text = self._held + piece
        found = [index for stop in self._stops if (index := text.find(stop)) >= 0]
        if found:
            self.hit, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The tail that was held back and became no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
