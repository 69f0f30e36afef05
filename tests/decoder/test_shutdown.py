"""On a first signal the decoder finishes its requests and admits no more; on a second one it ends at once."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from armature.storage.local import LocalArtifactStore
from tests.support.processes import wait_until
from tests.support.serving import ServedInstallation, publish_bundle, run_decoder

SHORT: dict[str, Any] = {"model": "care", "prompt": "tell me", "max_tokens": 40, "seed": 1, "stream": True}
ENDLESS = {**SHORT, "prompt": ["x"] * 16, "n": 8, "max_tokens": 200, "logit_bias": {"1": -100}}
"""Thousands of steps in the one slot there is."""
ASKED = {**SHORT, "max_tokens": 0, "echo": True, "stream": False}
"""Needs no slot, so it is answered at once, one way or the other."""


@pytest.mark.process
@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_finishes_streams_until_a_second_signal(tmp_path: Path, again: signal.Signals) -> None:
    installation = ServedInstallation(LocalArtifactStore(tmp_path / "store"))
    installation.add_tenant("acme")
    token = installation.add_key("acme")
    installation.point("acme", "care", publish_bundle(installation.store, tmp_path, seed=1).manifest)
    installation.publish()
    with (
        run_decoder(tmp_path, installation, max_slots="1", drain_seconds="600") as decoder,
        httpx.Client(base_url=f"{decoder.url}/v1", headers={"Authorization": f"Bearer {token}"}, timeout=60) as http,
    ):
        decoder.wait_ready(token, "care")
        assert http.post("/completions", json=ASKED).status_code == 200
        with (
            http.stream("POST", "/completions", json=SHORT) as short,
            http.stream("POST", "/completions", json=ENDLESS) as endless,
        ):
            cut = endless.iter_lines()
            next(cut)
            decoder.process.send_signal(signal.SIGTERM)
            wait_until(lambda: http.post("/completions", json=ASKED).status_code == 503)
            refused = http.post("/completions", json=ASKED)
            assert refused.json()["error"]["code"] == "shutting_down"
            assert refused.headers["retry-after"]
            assert [line for line in short.iter_lines() if line][-1] == "data: [DONE]"
            assert decoder.process.poll() is None
            decoder.process.send_signal(again)
            assert decoder.process.wait(20) == -again
            with pytest.raises(httpx.RemoteProtocolError):
                list(cut)
