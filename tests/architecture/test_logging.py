"""Logs go to the current standard error, in one line per event."""

from __future__ import annotations

import contextlib
import io
import json
import logging

import pytest

from armature.contracts.tenants import issue_key
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


@pytest.mark.parametrize("format", ["json", "text"])
def test_the_secret_of_a_key_is_never_written(capsys: pytest.CaptureFixture[str], format: str) -> None:
    key = issue_key()
    _, id, secret = key.token.split("_", 2)
    configure_logging(LogSettings.model_validate({"format": format}), "test")
    logging.getLogger("uvicorn.access").info('%s - "GET %s"', "127.0.0.1", f"/v1/models?key={key.token}&a=1")
    try:
        raise RuntimeError(f"no such key: {key.token}")
    except RuntimeError as error:
        get_logger("test").error("failed", exc_info=error, param=key.token)
    written = capsys.readouterr().err
    assert written.count(id) >= 3
    assert secret not in written
