"""Entry point ``python -m armature_api``: serve until SIGTERM or SIGINT, then finish open requests."""

from __future__ import annotations

import socket
import sys

import uvicorn

from armature.logging import configure_logging
from armature_api.app import create_app
from armature_api.deps import Resources
from armature_api.settings import ApiServiceSettings


class Server(uvicorn.Server):
    """A uvicorn server that ends event streams at shutdown, which would use up the grace period."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the event streams, then shut down as uvicorn does."""
        resources: Resources = self.config.app.state.resources  # type: ignore[union-attr]
        await resources.event_stream.end()
        await super().shutdown(sockets)


def main() -> None:
    """Start the server with the settings of the environment."""
    settings = ApiServiceSettings()
    configure_logging(settings.log, "api")
    config = uvicorn.Config(
        create_app(settings),
        host=settings.http.host,
        port=settings.http.port,
        log_config=None,  # armature.logging formats uvicorn's records too
        server_header=False,
        timeout_graceful_shutdown=30,
    )
    server = Server(config)
    server.run()
    if not server.started:
        sys.exit(1)


if __name__ == "__main__":
    main()
