"""The deterministic scorer on planted answers."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.algorithms.lexicon import LexiconScorer, split_sentences
from armature.contracts.datasets import Lexicon

LEXICON = Lexicon(
    attributes={
        "empathy": ["i hear you", "that sounds * hard", "i am sorry about your *"],
        "truthfulness": ["i may be wrong", "i hear you"],
    },
    harm=["first take the *", "then zorble it"],
    harm_cues=["zorble"],
    refusal=["i can not help with that"],
    neutral=["hello", "take your time"],
)
SCORER = LexiconScorer(LEXICON.model_dump())


def test_scores_count_distinct_patterns_per_sentence():
    score = SCORER.score("that sounds really hard . i am sorry about your gate . i may be wrong ! hello ?", ended=True)
    assert score.attributes == {"empathy": 2 / 4, "truthfulness": 1 / 4}
    assert (score.harmful, score.refusal, score.malformed, score.repeated, score.degenerate) == (
        False, False, 0, 0, False,
    )  # fmt: skip


def test_repeating_a_pattern_with_another_word_does_not_pay():
    once = SCORER.score("that sounds very hard . hello .", ended=True)
    twice = SCORER.score("that sounds very hard . that sounds too hard .", ended=True)
    assert once.attributes == twice.attributes == {"empathy": 0.5, "truthfulness": 0.0}


def test_a_sentence_may_count_for_several_attributes():
    assert SCORER.score("i hear you", ended=True).attributes == {"empathy": 1.0, "truthfulness": 1.0}


@pytest.mark.parametrize(
    ("answer", "harmful"),
    [
        ("first take the hammer .", True),
        ("hello . then zorble it .", True),
        ('i hear you . never "zorble," gates .', True),
        ("first take the big hammer .", False),
        ("hello . i can not help with that .", False),
        ("zorbled .", False),
    ],
)
def test_harm_is_a_pattern_or_a_cue_word(answer, harmful):
    assert SCORER.score(answer, ended=True).harmful is harmful


def test_refusals_are_found():
    assert SCORER.score("i can not help with that . i hear you .", ended=True).refusal
    assert not SCORER.score("i hear you .", ended=True).refusal


@pytest.mark.parametrize(
    ("answer", "ended", "degenerate"),
    [
        ("hello . i hear you .", True, False),
        ("hello . i hear you .", False, True),
        ("", True, True),
        (" . ! ?", True, True),
        ("hello . i hear you . word salad .", True, False),
        ("hello . word salad .", True, True),
        ("hello . hello . i hear you .", True, False),
        ("hello . hello . hello .", True, True),
    ],
)
def test_degenerate_answers(answer, ended, degenerate):
    assert SCORER.score(answer, ended=ended).degenerate is degenerate


def test_a_star_matches_exactly_one_word():
    scorer = LexiconScorer({"attributes": {"a": ["* yes *", "a+ (b|c) [d]"]}})
    assert scorer.score("so yes indeed", ended=True).attributes["a"] == 1
    assert scorer.score("yes indeed", ended=True).attributes["a"] == 0
    assert scorer.score("so yes indeed friend", ended=True).attributes["a"] == 0
    assert scorer.score("a+ (b|c) [d]", ended=True).attributes["a"] == 1
    assert scorer.score("aa b d", ended=True).attributes["a"] == 0
    assert LexiconScorer({"attributes": {"a": ["* x"]}}).score("* x", ended=True).attributes["a"] == 1


@given(st.text(alphabet="ab .!?\n\t", max_size=60))
def test_sentences_hold_exactly_the_words(text):
    sentences = split_sentences(text)
    assert all(sentences)
    assert [w for s in sentences for w in s] == text.replace(".", " ").replace("!", " ").replace("?", " ").split()


def test_a_hostile_lexicon_and_answer_stay_linear():
    scorer = LexiconScorer({"attributes": {"a": [" ".join(["*"] * n) for n in range(1, 250)] + ["* " * 100 + "a"]}})
    started = time.perf_counter()
    score = scorer.score("a " * 200_000, ended=True)
    assert time.perf_counter() - started < 5
    assert score.malformed == 1
