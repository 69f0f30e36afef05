"""Reports on single tokens are JSON even where a stream overflows."""

from __future__ import annotations

import math

import pytest

from armature.contracts.answers import LEAST_LOGPROB
from armature.inference.batch import Sampled
from armature_decoder.http.token_reports import Reporter, chat_logprobs
from tests.support.tiny_models import byte_tokenizer


@pytest.mark.parametrize("arm_logprob", [-math.inf, math.nan])
def test_an_arm_logprob_that_is_not_finite_becomes_the_least(arm_logprob: float) -> None:
    reporter = Reporter(byte_tokenizer(), parts=True, guided=True)
    report = reporter.report(Sampled(70, None, logprob=-0.5, safe_logprob=-0.5, arm_logprob=arm_logprob))
    assert report is not None
    (content,) = chat_logprobs([report])
    assert content.parts is not None
    assert (content.parts.guided, content.parts.safe, content.parts.arm) == (-0.5, -0.5, LEAST_LOGPROB)
