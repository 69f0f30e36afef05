"""Structured logs: one line per event, JSON for machines or text for a terminal, never a secret."""

from __future__ import annotations

import logging
import re
import sys
from typing import TextIO

import structlog

from armature.settings import LogSettings

_SECRET = re.compile(r"(ak_[0-9a-f]{16})_[A-Za-z0-9_-]{43}")
"""An API key: its id (the group) may be logged, the secret behind it must not."""


class _RedactingFormatter(structlog.stdlib.ProcessorFormatter):
    """A formatter that redacts the secrets of API keys in whole lines, such as a key sent in a URL."""

    def format(self, record: logging.LogRecord) -> str:
        return _SECRET.sub(r"\1_...", super().format(record))


class _StandardError(logging.StreamHandler[TextIO]):
    """A handler that looks up ``sys.stderr`` at each write: a test may replace and close the stream."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The current standard error."""
        return sys.stderr


def configure_logging(settings: LogSettings, service: str) -> None:
    """Send structlog's and the standard library's logs to stderr in one format, bound to ``service``."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = _StandardError()
    handler.setFormatter(
        _RedactingFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    structlog.contextvars.bind_contextvars(service=service)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger
