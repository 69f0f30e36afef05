"""``python -m armature_decoder``: serve until SIGTERM or SIGINT, then let running answers finish."""

from __future__ import annotations

import math

import uvicorn

from armature.logging import configure_logging
from armature_decoder.app import create_app
from armature_decoder.engine.scheduler import Scheduler
from armature_decoder.settings import DecoderServiceSettings


def main(schedule: type[Scheduler] = Scheduler) -> None:
    """Start the server with the settings of the environment."""
    settings = DecoderServiceSettings()
    configure_logging(settings.log, "decoder")
    uvicorn.run(
        create_app(settings, schedule),
        host=settings.http.host,
        port=settings.http.port,
        log_config=None,  # our logging takes uvicorn's records too
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.decoder.drain_seconds),
    )


if __name__ == "__main__":
    main()
