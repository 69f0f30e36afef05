"""Reports on single tokens: text, bytes, log-probability, and the likeliest alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from armature.contracts.answers import LEAST_LOGPROB, ContentLogprob, LogprobParts, TextLogprobs, TokenLogprob
from armature.inference.sampler import Sampled

_REPLACEMENT = "�"

Likely = tuple[str, bytes | None, float]
"""A token's text, its bytes if they are whole characters, and its log-probability. A request may ask for 250,000 of
them: plain tuples of strings and numbers are not tracked by the garbage collector."""


@dataclass(frozen=True)
class TokenReport:
    """A report on one token.

    ``logprob`` is None for a prompt's first token; ``ends`` marks the end of sequence.
    """

    text: str
    bytes: bytes | None
    logprob: float | None
    top: tuple[Likely, ...] = ()
    parts: LogprobParts | None = None
    ends: bool = False


@dataclass(frozen=True)
class Reporter:
    """Makes reports, in which a log-probability of minus infinity or NaN becomes :data:`LEAST_LOGPROB`.

    Args:
        tokenizer: The model's tokenizer.
        parts: Whether reports have the parts of the log-probability.
        guided: Whether the ARM's log-probability is one of the parts.
    """

    tokenizer: PreTrainedTokenizerBase
    parts: bool
    guided: bool

    def report(self, sampled: Sampled) -> TokenReport | None:
        """Report on a sampled token; None if no log-probabilities are asked for."""
        if sampled.logprob is None:
            return None
        top = tuple(self._token(id, value) for id, value in sampled.top)
        ends = sampled.finish_reason == "stop"
        return TokenReport(*self._token(sampled.token, sampled.logprob), top, self._parts(sampled), ends)

    def report_prompt(self, prompt: Sequence[int], scored: Sequence[Sampled]) -> tuple[TokenReport, ...]:
        """Report on a scored prompt, whose first token has no log-probability."""
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
        if not whole:  # part of a character: all such parts decode alike, so the token's name is used
            text = str(self.tokenizer.convert_ids_to_tokens(id))
        return text, text.encode() if whole else None, _finite(logprob)


def chat_logprobs(reports: Sequence[TokenReport]) -> list[ContentLogprob]:
    """Convert reports to the form of chat completions, which leaves out the end of sequence."""
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
    """Convert reports to the form of text completions; ``offset`` is where the first token begins."""
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
    """Map texts to log-probabilities, the chosen token's among them.

    Of tokens with equal text the likeliest stays.
    """
    if report.logprob is None:
        return None
    pairs = [(report.text, report.logprob), *((text, logprob) for text, _, logprob in report.top)]
    return dict(sorted(pairs, key=lambda pair: pair[1]))


def _numbers(raw: bytes | None) -> list[int] | None:
    return None if raw is None else list(raw)


def _finite(logprob: float) -> float:
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB  # NaN (an ARM that overflows) compares False
