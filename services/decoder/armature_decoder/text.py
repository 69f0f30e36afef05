"""Token ids to text, piece by piece: whole characters only, and nothing from the first stop string on."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "�"
_LONGEST_CHARACTER = 8
"""Most tokens held back for one character; a longer run of undecodable bytes is returned as it is."""
_CONTEXT = 8
"""Ids of the prefix that are kept as left neighbours."""


class Detokenizer:
    """The text of a growing sequence, in whole characters.

    A token that ends inside a character is held back until the character is whole.

    Args:
        tokenizer: The model's tokenizer.
        prefix: Ids before the sequence, for tokenizers whose text depends on the left neighbour (a leading space).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prefix: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prefix[-_CONTEXT:])
        self._start = 0  # ids from here to _done are text already, decoded again as the left neighbours of the rest
        self._done = len(self._ids)

    def push(self, token: int) -> str:
        """Append a token and return the text it completes, empty while a character is unfinished."""
        self._ids.append(token)
        return self._advance(final=len(self._ids) - self._done > _LONGEST_CHARACTER)

    def flush(self) -> str:
        """Return the text still held back, with replacement characters for unfinished ones."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        before = self._decode(self._ids[self._start : self._done])
        now = self._decode(self._ids[self._start :])
        if now.endswith(_REPLACEMENT) and not final:
            return ""
        self._start, self._done = self._done, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class StopStrings:
    """Cuts a text, given in pieces, at the first stop string; one may span several pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.hit = False

    def push(self, piece: str) -> str:
        """Append ``piece`` and return the text that is certain.

        A tail that may start a stop string is held back.
        """
        text = self._held + piece
        found = [index for stop in self._stops if (index := text.find(stop)) >= 0]
        if found:
            self.hit, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return the tail that was held back and became no stop string."""
        held, self._held = self._held, ""
        return held


def special_stops(tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> frozenset[int]:
    """Return the ids of the special tokens among ``stops``.

    An answer's text leaves special tokens out, so a search in it never finds one.
    """
    special = {tokenizer.convert_ids_to_tokens(id): id for id in tokenizer.all_special_ids}
    added = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(id for content, id in {**special, **added}.items() if content in stops)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of ``text`` that is a prefix of ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
