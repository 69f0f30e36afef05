"""What is left of a written answer: no preamble, whole sentences, about the other side's length."""

from __future__ import annotations

import re

_PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|ok|absolutely)\b[^\n:]{0,80}?[!.,:]\s*)?"
    r"(?:here(?:'s|’s| is| are)\b|(?:(?:a|an|the|my|possible|sample|example)\s+)+(?:response|reply|answer)\b)"
    r"[^\n:.!?]{0,120}:\s+",
    re.IGNORECASE,
)
"""An announcement of the answer, which often names the instruction: it would give the label away."""
_ECHO = re.compile(r"^(?:assistant|answer|response|reply)\s*:\s*", re.IGNORECASE)
_QUOTES = {'"': '"', "“": "”", "«": "»"}
_SENTENCE_END = re.compile(r"[.!?…。！？](?:[\"'”’»)\]*_]*)(?=\s|$)|[。！？]|(?<=[^\s:,;])\n")
_NUMBERING = re.compile(r"(?:^|\n)\s*(?:\d+|[a-zA-Z])[.)]$")
"""The dot of a list's number, which ends no sentence."""


def clean(text: str) -> str:
    """Strip spaces, an announcement of the answer, and quotation marks around all of it."""
    text = text.strip()
    for pattern in (_ECHO, _PREAMBLE):
        text = pattern.sub("", text, count=1).strip()
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text.count(text[-1]) <= 1 + (text[0] == text[-1]):
        text = text[1:-1].strip()
    return text


def sentence_ends(text: str) -> list[int]:
    """List where the sentences of ``text`` end, as lengths in characters; a line break ends one too."""
    ends = (match.end() for match in _SENTENCE_END.finditer(text))
    return [end for end in ends if not _NUMBERING.search(text[:end].rstrip())]


def whole_sentences(text: str, limit: int | None = None) -> str:
    """Cut ``text`` to its last whole sentence within ``limit`` characters; empty if there is none."""
    ends = [end for end in sentence_ends(text) if limit is None or end <= limit]
    return text[: ends[-1]].rstrip() if ends else ""


def fit_lengths(first: str, second: str, ratio: float) -> tuple[str, str] | None:
    """Cut the longer text at a sentence to ``ratio`` times the shorter; None if no sentence fits."""
    limit = int(ratio * min(len(first), len(second)))
    longest = max(len(first), len(second))
    if longest <= limit:
        return first, second
    first_fits, second_fits = (text if len(text) <= limit else whole_sentences(text, limit) for text in (first, second))
    fits = min(len(first_fits), len(second_fits)) * ratio >= max(len(first_fits), len(second_fits)) > 0
    return (first_fits, second_fits) if fits else None
