"""``python -m armature_api``: serve the API until SIGTERM or SIGINT, then finish the requests in flight."""

from __future__ import annotations

import socket
import sys

import uvicorn

from armature.logging import configure_logging
from armature_api.app import create_app
from armature_api.deps import Resources
from armature_api.settings import ApiServiceSettings


class Server(uvicorn.Server):
    """Ends streams as soon as it is told to stop; a request has an end of its own, a stream would take all the time."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As its parent does, streams first."""
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
        log_config=None,  # our logging takes uvicorn's records too
        server_header=False,
        timeout_graceful_shutdown=30,
    )
    server = Server(config)
    server.run()
    if not server.started:
        sys.exit(1)


if __name__ == "__main__":
    main()
