"""The screen: which written pairs are texts that a judge should see, and why the others are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from armature.algorithms.near_duplicates import NearDuplicates, coverage, jaccard, repetition, shingles
from armature.contracts.specs.pairs import PairScreen
from armature.modeling.tokenization.dialogues import as_messages
from armature_worker.pairs.plan import PlannedPair
from armature_worker.pairs.teachers import Draft
from armature_worker.pairs.texts import clean, fit_lengths, whole_sentences

_ECHOED = 0.8
"""Share of the prompt's word triples in an answer above which the answer repeats the prompt."""


@dataclass(frozen=True)
class Candidate:
    """A pair's texts: the side written for the attribute, and the side written against it."""

    plan: PlannedPair
    texts: tuple[str, str]


@dataclass(frozen=True)
class Dropped:
    """A pair that is not kept: the reason, and its texts as far as they got."""

    plan: PlannedPair
    reason: str
    texts: tuple[str, str]


def screen_pairs(
    pairs: Sequence[PlannedPair], drafts: Sequence[tuple[Draft, Draft]], screen: PairScreen
) -> tuple[list[Candidate], list[Dropped]]:
    """Clean and cut the drafts of each pair, and drop pairs by the first condition that they miss.

    The reasons, in order: ``unfinished``, ``short``, ``repetitive``, ``echo`` (a side repeats the prompt), ``length``,
    ``same`` (the two sides are nearly equal), ``repeat`` (a side is nearly equal to an answer of an earlier pair).
    """
    seen = NearDuplicates(screen.max_similarity)
    candidates, dropped = list[Candidate](), list[Dropped]()
    for plan, (first, second) in zip(pairs, drafts, strict=True):
        texts = finished_text(first), finished_text(second)
        fitted = fit_lengths(*texts, screen.max_length_ratio) if all(texts) else None
        reason = _problem_of_a_side(plan, texts, screen) or _problem_of_both(fitted, screen)
        if reason is None and fitted is not None and any(map(seen.has, fitted)):
            reason = "repeat"
        if reason is not None or fitted is None:
            dropped.append(Dropped(plan, reason or "length", fitted or texts))
            continue
        for text in fitted:
            seen.add(text)
        candidates.append(Candidate(plan, fitted))
    return candidates, dropped


def finished_text(draft: Draft) -> str:
    """Return a draft's text without a preamble, and without a sentence that the token limit cut."""
    text = clean(draft.text)
    return text if draft.finished else whole_sentences(text)


def _problem_of_a_side(plan: PlannedPair, texts: tuple[str, str], screen: PairScreen) -> str | None:
    if not all(texts):
        return "unfinished"
    if min(map(len, texts)) < screen.min_characters:
        return "short"
    if max(map(repetition, texts)) > screen.max_repetition:
        return "repetitive"
    asked = shingles(as_messages(plan.prompt)[-1]["content"])
    return "echo" if any(coverage(asked, shingles(text)) > _ECHOED for text in texts) else None


def _problem_of_both(fitted: tuple[str, str] | None, screen: PairScreen) -> str | None:
    if fitted is None or min(map(len, fitted)) < screen.min_characters:
        return "length"
    first, second = map(shingles, fitted)
    return "same" if first == second or jaccard(first, second) > screen.max_similarity else None
