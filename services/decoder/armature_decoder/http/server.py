"""The server process: runs until SIGTERM or SIGINT, then lets running requests finish."""

from __future__ import annotations

import math
import signal
import socket
import sys
from types import FrameType

import uvicorn

from armature.inference.malloc import keep_freed_memory
from armature.logging import configure_logging
from armature.startup import startup_without_gc
from armature_decoder.http.app import create_app
from armature_decoder.service import DecoderService
from armature_decoder.settings import DecoderServiceSettings


class _Server(uvicorn.Server):
    """A server that drains.

    After the first signal it listens until running requests finish; a second one ends it. New requests are refused with
    503 meanwhile, so that a client tries another decoder at once.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:  # safe at any moment: files on disk are written atomically
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service: DecoderService = self.config.app.state.service  # type: ignore[union-attr]
        await service.gate.drain(service.settings.drain_seconds)
        await super().shutdown(sockets)


def serve() -> None:
    """Serve with the settings of the environment."""
    settings = DecoderServiceSettings()
    configure_logging(settings.log, "decoder")
    keep_freed_memory()
    with startup_without_gc():
        config = uvicorn.Config(
            create_app(settings),
            host=settings.http.host,
            port=settings.http.port,
            log_config=None,  # configure_logging handles uvicorn's records too
            server_header=False,
            timeout_graceful_shutdown=math.ceil(settings.decoder.drain_seconds),
        )
        server = _Server(config)
    server.run()
    if not server.started:
        sys.exit(1)
