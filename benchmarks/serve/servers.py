"""Decoders as processes on one store."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from armature_cli.local_platform.die_with_parent import die_with_parent
from armature_cli.local_platform.ports import HOST, reserved_ports
from benchmarks.plan import ServePlan
from benchmarks.serve.installation import PROFILE

_STATIC_SERVER = "benchmarks.serve.static_server"
MODULES = {
    "continuous": ["armature_decoder"],
    "static": [_STATIC_SERVER, "static"],
    "early_exit": [_STATIC_SERVER, "early_exit"],
}
"""Module and arguments by kind of batching."""
_START_SECONDS = 180.0


@contextmanager
def decoder_process(folder: Path, batching: str, plan: ServePlan, token: str) -> Iterator[str]:
    """Start a decoder on the store ``folder/store``; yield its address once its model is ready.

    Half of the cores compute; the others are for the clients, which run on the same machine.

    Raises:
        RuntimeError: The decoder ended or did not become ready; the message has the end of its log.
    """
    log = folder / f"{batching}.log"
    environment = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2)),
        **os.environ,
        "ARMATURE_LOG__LEVEL": "WARNING",
        "ARMATURE_STORE__PATH": str(folder / "store"),
        "ARMATURE_DECODER__CACHE_DIR": str(folder / batching),
        "ARMATURE_DECODER__DEVICE": plan.device,
        "ARMATURE_DECODER__MAX_SLOTS": str(plan.slots),
        "ARMATURE_DECODER__MAX_WAITING": "100000",
        "ARMATURE_DECODER__POLL_INTERVAL": "0.2",
        "ARMATURE_DECODER__LOAD_WAIT": str(_START_SECONDS),
    }
    with reserved_ports(0) as (port,), log.open("ab") as output:
        process = subprocess.Popen(
            die_with_parent([sys.executable, "-m", *MODULES[batching]]),
            env={**environment, "ARMATURE_HTTP__HOST": HOST, "ARMATURE_HTTP__PORT": str(port)},
            stdout=output,
            stderr=output,
        )
        try:
            url = f"http://{HOST}:{port}"
            _wait_ready(url, token, process, log)
            yield url
        finally:
            process.terminate()
            process.wait()


def _wait_ready(url: str, token: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    state = ""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}) as http:
        while state != "failed" and process.poll() is None and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                state = http.get(f"/v1/models/{PROFILE}").json().get("state")
            if state == "ready":
                return
            time.sleep(0.1)
    raise RuntimeError(f"the decoder did not become ready; its log ends with:\n{log.read_text()[-2000:]}")
