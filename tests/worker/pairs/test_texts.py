"""What is left of a written answer."""

from __future__ import annotations

import pytest

from armature_worker.pairs.screening import finished_text
from armature_worker.pairs.teachers import Draft
from armature_worker.pairs.texts import clean, fit_lengths, whole_sentences


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("  Sure! Here's a response that is empathetic:\n\nI hear you.", "I hear you."),
        ("Certainly, here is a non-judgmental answer: It happens.", "It happens."),
        ("Here are some steps:\n1. Call them.\n2. Wait.", "1. Call them.\n2. Wait."),
        ("Answer: Take a rest.", "Take a rest."),
        ("Response: Sure, here is my reply: No.", "No."),
        ('"I am sorry to hear it."', "I am sorry to hear it."),
        ("“I am sorry.”", "I am sorry."),
        ('"No", she said, "never"', '"No", she said, "never"'),
        ("Here is the thing. It hurts: that is normal.", "Here is the thing. It hurts: that is normal."),
        ("Sure, you can call them: they are open.", "Sure, you can call them: they are open."),
        ("This is the point: you tried.", "This is the point: you tried."),
        ("Answer the phone: it may be her.", "Answer the phone: it may be her."),
        ("A possible reply to that: I am sorry.", "I am sorry."),
    ],
)
def test_announcements_and_quotation_marks_go(text: str, left: str) -> None:
    assert clean(text) == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("One. Two! Thr", "One. Two!"),
        ('He said "stop." And th', 'He said "stop."'),
        ("Do this:\n1. Call them.\n2. Wri", "Do this:\n1. Call them."),
        ("- call them\n- write a let", "- call them"),
        ("No end at all", ""),
        ("It costs 3.5 euros. And", "It costs 3.5 euros."),
        ("你好。我在", "你好。"),
    ],
)
def test_a_cut_answer_ends_with_a_sentence(text: str, left: str) -> None:
    assert whole_sentences(text) == left
    assert finished_text(Draft(text, finished=False)) == left


def test_a_finished_answer_may_end_as_it_likes() -> None:
    assert finished_text(Draft("Try a rest", finished=True)) == "Try a rest"


def test_the_longer_side_is_cut_at_a_sentence_to_the_ratio() -> None:
    long = "One two three. Four five six. Seven eight nine."
    assert fit_lengths(long, "Ten eleven twelve.", 1.5) == ("One two three.", "Ten eleven twelve.")
    assert fit_lengths("Ten eleven twelve.", long, 2.0) == ("Ten eleven twelve.", "One two three. Four five six.")
    assert fit_lengths("Short one.", "Short too.", 1.0) == ("Short one.", "Short too.")


def test_sides_that_no_sentence_fits_are_refused() -> None:
    assert fit_lengths("No.", "This sentence is long and has no end before it is over.", 1.5) is None
    assert fit_lengths("This answer is of middling length, one sentence.", "A. " + "b" * 100 + ".", 1.5) is None
