"""The platform of the API benchmark: API and broker first, relay and worker when their part begins."""

from __future__ import annotations

import json
from pathlib import Path

from armature.settings import ENV_PREFIX
from armature_cli.local_platform.embedded import EmbeddedPlatform, Options

_NEVER = "86400"


class ControlPlane(EmbeddedPlatform):
    """An embedded platform on a given database whose other services are started one by one."""

    def __init__(self, data: Path, database: str) -> None:
        environment = {
            f"{ENV_PREFIX}DATABASE__URL": database,
            f"{ENV_PREFIX}IMPORTS__ROOTS": json.dumps([str(data.parent)]),
            f"{ENV_PREFIX}JOBS__RESEND_AFTER": _NEVER,  # else jobs whose messages the benchmark takes are sent again
        }
        super().__init__(Options(data, 0, 0, 0, environment))

    @property
    def redis_url(self) -> str:
        """The broker's URL, with its password."""
        return self.settings[f"{ENV_PREFIX}REDIS__URL"]

    def start_services(self) -> None:
        """Start the API alone."""
        self.start("api")

    def start(self, name: str) -> None:
        """Start a service and return once it is ready."""
        self.spawn(name)
        self.wait(name)
