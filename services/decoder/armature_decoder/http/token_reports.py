"""What is told of single tokens: their text, and what the distributions thought of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from armature.contracts.answers import LEAST_LOGPROB, ContentLogprob, LogprobParts, TextLogprobs, TokenLogprob
from armature.inference.sampler import Sampled

_REPLACEMENT = "�"

Likely = tuple[str, bytes | None, float]
"""A token's text, its bytes if they are whole characters, and its log-probability. A request may ask for a quarter of a
million of them: plain tuples, which the garbage collector leaves out when it looks through everything."""


@dataclass(frozen=True)
class TokenReport:
    """One token. ``logprob`` is None for the first token of a prompt; ``ends`` marks the end of sequence."""

    text: str
    bytes: bytes | None
    logprob: float | None
    top: tuple[Likely, ...] = ()
    parts: LogprobParts | None = None
    ends: bool = False


@dataclass(frozen=True)
class Reporter:
    """Makes reports. A log-probability of minus infinity, or that is no number, is told as :data:`LEAST_LOGPROB`.

    Args:
        tokenizer: Of the model.
        parts: Whether each token comes with its parts.
        guided: Whether there is an ARM's part.
    """

    tokenizer: PreTrainedTokenizerBase
    parts: bool
    guided: bool

    def report(self, sampled: Sampled) -> TokenReport | None:
        """What to tell of a token; None: nothing is asked."""
        if sampled.logprob is None:
            return None
        top = tuple(self._token(id, value) for id, value in sampled.top)
        ends = sampled.finish_reason == "stop"
        return TokenReport(*self._token(sampled.token, sampled.logprob), top, self._parts(sampled), ends)

    def report_prompt(self, prompt: Sequence[int], scored: Sequence[Sampled]) -> tuple[TokenReport, ...]:
        """Reports on a whole prompt, whose first token has no log-probability."""
        text, raw, _ = self._token(prompt[0], 0.0)
        rest = [report for sampled in scored if (report := self.report(sampled)) is not None]
        return (TokenReport(text, raw, None), *rest)

    def _parts(self, sampled: Sampled) -> LogprobParts | None:
        if not self.parts or sampled.logprob is None:
            return None
        arm = _finite(sampled.arm_logprob) if self.guided else None
        return LogprobParts(guided=_finite(sampled.logprob), safe=_finite(sampled.safe_logprob), arm=arm)

    def _token(self, id: int, logprob: float) -> Likely:
        text = self.tokenizer.decode([id])
        whole = _REPLACEMENT not in text
        if not whole:  # a piece of a character is called by its own name, for these pieces all look alike
            text = str(self.tokenizer.convert_ids_to_tokens(id))
        return text, text.encode() if whole else None, _finite(logprob)


def chat_logprobs(reports: Sequence[TokenReport]) -> list[ContentLogprob]:
    """Reports in the form of chat completions, which have no place for the end of sequence."""
    return [
        ContentLogprob(
            token=report.text,
            logprob=report.logprob,
            bytes=_numbers(report.bytes),
            top_logprobs=[
                TokenLogprob(token=text, logprob=logprob, bytes=_numbers(raw)) for text, raw, logprob in report.top
            ],
            parts=report.parts,
        )
        for report in reports
        if report.logprob is not None and not report.ends
    ]


def text_logprobs(reports: Sequence[TokenReport], offset: int = 0) -> TextLogprobs:
    """Reports in the form of text completions; ``offset`` is where the first token begins."""
    offsets = []
    for report in reports:
        offsets.append(offset)
        offset += len(report.text)
    parts = [report.parts for report in reports]
    return TextLogprobs(
        tokens=[report.text for report in reports],
        token_logprobs=[report.logprob for report in reports],
        top_logprobs=[_alternatives(report) for report in reports],
        text_offset=offsets,
        parts=parts if any(parts) else None,
    )


def _alternatives(report: TokenReport) -> dict[str, float] | None:
    """By text, the chosen token among them; of tokens that look alike the likeliest counts."""
    if report.logprob is None:
        return None
    pairs = [(report.text, report.logprob), *((text, logprob) for text, _, logprob in report.top)]
    return dict(sorted(pairs, key=lambda pair: pair[1]))


def _numbers(raw: bytes | None) -> list[int] | None:
    return None if raw is None else list(raw)


def _finite(logprob: float) -> float:
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB  # of an ARM that overflows it may be no number
