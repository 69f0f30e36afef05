"""Logs go to the current standard error, in one line per event."""

from __future__ import annotations

import contextlib
import io
import json

import pytest

from armature.logging import configure_logging, get_logger
from armature.settings import LogSettings


def test_a_replaced_and_closed_stderr_is_not_written_to(capsys: pytest.CaptureFixture[str]) -> None:
    borrowed = io.StringIO()
    with contextlib.redirect_stderr(borrowed):
        configure_logging(LogSettings(format="json"), "test")
    borrowed.close()
    get_logger("test").warning("still heard", number=1)
    line = json.loads(capsys.readouterr().err)
    assert line["event"] == "still heard"
    assert line["number"] == 1
