"""The forms of rows in files: a model per form, and the table that recognises them.

A form is a model of the file's columns, so that an error names the column as it is in the file, and converts itself to
the rows that jobs use. A new form is one class and one row of :data:`FORMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from armature.contracts.datasets import DatasetFormat
from armature.datasets.forms import completions, pairs, ratings
from armature.datasets.forms.base import QUESTIONS, FileRow


@dataclass(frozen=True)
class Form:
    """A form: its name and format, its model, and what identifies it.

    Attributes:
        signatures: Sets of columns; a row that has all of one may be of this form.
        fits: A further condition on the values.
    """

    name: str
    format: DatasetFormat
    model: type[FileRow]
    signatures: tuple[frozenset[str], ...]
    fits: Callable[[Mapping[str, Any]], bool] = lambda columns: True

    def matches(self, columns: Mapping[str, Any]) -> bool:
        """Tell whether a row's columns are of this form."""
        return any(signature <= columns.keys() for signature in self.signatures) and self.fits(columns)


def _form(
    name: str,
    format: DatasetFormat,
    model: type[FileRow],
    *signatures: str,
    fits: Callable[[Mapping[str, Any]], bool] = lambda columns: True,
) -> Form:
    return Form(name, format, model, tuple(frozenset(columns.split()) for columns in signatures), fits)


def _lists_objects(column: str) -> Callable[[Mapping[str, Any]], bool]:
    def fits(columns: Mapping[str, Any]) -> bool:
        values = columns[column]
        return isinstance(values, list) and all(isinstance(value, dict) for value in values)

    return fits


_TRUTHFUL_QA = frozenset({"Best Answer", "Best Incorrect Answer"})

FORMS = (
    _form(
        "transcript_pair",
        "preference",
        pairs.TranscriptPairForm,
        "chosen rejected",
        fits=pairs.TranscriptPairForm.is_one,
    ),
    _form("chosen_rejected", "preference", pairs.ChosenRejectedForm, "chosen", "rejected"),
    _form("responses", "preference", pairs.ResponsesForm, "responses"),
    _form("pku_safe_rlhf", "preference", pairs.SafeRlhfForm, "response_0 response_1 better_response_id"),
    _form(
        "helpsteer_preference",
        "preference",
        pairs.StrengthForm,
        "response1 response2 overall_preference",
        "response_1 response_2 preference_strength",
    ),
    _form("openai_preference", "preference", pairs.OpenAiPairForm, "preferred_output non_preferred_output"),
    _form("nectar", "preference", ratings.NectarForm, "prompt answers", fits=_lists_objects("answers")),
    _form(
        "ultrafeedback",
        "preference",
        ratings.UltraFeedbackForm,
        "instruction completions",
        fits=_lists_objects("completions"),
    ),
    _form("shp", "preference", pairs.ShpForm, "history human_ref_A human_ref_B labels"),
    _form("arena", "preference", pairs.ArenaForm, "conversation_a conversation_b winner"),
    Form("truthful_qa", "preference", pairs.TruthfulQaForm, (_TRUTHFUL_QA,)),
    _form("rated_answer", "unpaired_preference", ratings.RatedAnswerForm, "completion label", "completion scores"),
    _form("helpsteer", "unpaired_preference", ratings.HelpSteerForm, "response helpfulness correctness coherence"),
    _form("beavertails", "unpaired_preference", ratings.SafetyForm, "response is_safe"),
    _form("wildguard", "unpaired_preference", ratings.WildGuardForm, "prompt response_harm_label"),
    _form("messages", "messages", completions.MessagesForm, "messages", "conversations", "conversation"),
    _form(
        "transcript",
        "messages",
        completions.TranscriptForm,
        "transcript",
        "text",
        fits=completions.TranscriptForm.is_one,
    ),
    _form("dolly", "prompt_completion", completions.DollyForm, "instruction context response", "context response"),
    _form(
        "prompt_completion",
        "prompt_completion",
        completions.CompletionForm,
        "completion",
        "instruction output",
        "instruction response",
        *(f"{question} {answer}" for question in QUESTIONS for answer in completions.ANSWERS),
    ),
    _form("lexicon", "lexicon", completions.LexiconForm, "attributes"),
    _form("questions", "prompt", completions.QuestionsForm, "turns"),
    _form("prompt", "prompt", completions.PromptForm, *QUESTIONS, "instruction"),
)
"""The first that matches is taken."""
_LAST = FORMS[-1]


def detect_form(columns: Mapping[str, Any]) -> Form:
    """Return the form that a row's columns identify; a prompt, which they may lack, if they identify none."""
    return next((form for form in FORMS if form.matches(columns)), _LAST)


def is_known(columns: Mapping[str, Any]) -> bool:
    """Tell whether a row's columns identify a form."""
    return any(form.matches(columns) for form in FORMS)


_TEXTS = ("chosen", "rejected", "completion", "prompt", "messages")


def is_conversational(columns: Mapping[str, Any]) -> bool | None:
    """Tell whether a row has lists of messages; None if one of its answers is a list and the other a text."""
    responses = columns.get("responses")
    answers = [columns.get("chosen"), columns.get("rejected"), *(responses if isinstance(responses, list) else ())]
    kinds = {isinstance(answer, list | dict) for answer in answers if answer is not None}
    if len(kinds) > 1:
        return None
    return True in kinds or any(isinstance(columns.get(name), list) for name in _TEXTS)
