"""A real pretrained model through the whole platform: registered, every job kind, guided generation."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from armature.client import Client
from armature_cli.embedded import EmbeddedPlatform, Options
from tests.support import main_job
from tests.support.processes import wait_until
from tests.support.stories260k import convert

SOURCE = Path(__file__).resolve().parents[3] / "shared" / "data" / "stories260k"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not SOURCE.exists(), reason="shared/data/stories260k is not on this machine"),
]


def test_it_is_registered_aligned_and_served(tmp_path: Path) -> None:
    model = convert(SOURCE, tmp_path / "model")
    options = Options(tmp_path / "data", 0, 0, 0)
    with EmbeddedPlatform(options) as platform, Client(platform.api_url, platform.admin_key) as admin:
        built = main_job.build(admin, model, "stories260k")
        main_job.go_live(admin, built, "stories", {"empathy": 1.0})
        client = openai.OpenAI(base_url=f"{platform.decoder_url}/v1", api_key=platform.admin_key, max_retries=8)
        with client:
            wait_until(lambda: [served.id for served in client.models.list()], what="the model in the list")
            stream = client.completions.create(
                model="stories", prompt="Once upon a time", max_tokens=24, temperature=0.0, stream=True
            )
            plain = client.completions.create(
                model="stories",
                prompt="Once upon a time",
                max_tokens=24,
                temperature=0.0,
                extra_body={"guidance_weight": 0},
            )
            assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices).strip()
            assert plain.choices[0].text.strip()
