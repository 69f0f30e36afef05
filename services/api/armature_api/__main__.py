"""``python -m armature_api``: serve the API until SIGTERM or SIGINT, then finish the requests in flight."""

from __future__ import annotations

import uvicorn

from armature.logging import configure_logging
from armature_api.app import create_app
from armature_api.settings import ApiServiceSettings


def main() -> None:
    """Start the server with the settings of the environment."""
    settings = ApiServiceSettings()
    configure_logging(settings.log, "api")
    uvicorn.run(
        create_app(settings),
        host=settings.http.host,
        port=settings.http.port,
        log_config=None,  # our logging takes uvicorn's records too
        server_header=False,
        timeout_graceful_shutdown=30,
    )


if __name__ == "__main__":
    main()
