"""The decoder that these tests share; imported here because the module needs torch, which other folders do without."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI

from tests.support.serving import DecoderProcess, decoder_process, serving_bundles, serving_root

__all__ = ["client", "decoder_process", "http", "serving_bundles", "serving_root", "token"]


@pytest.fixture(scope="module")
def token(decoder_process: DecoderProcess) -> str:
    """The key of a tenant that has both profiles."""
    token = decoder_process.installation.add_key("acme")
    decoder_process.installation.publish()
    time.sleep(0.5)
    decoder_process.wait_ready(token, "care", "other")
    return token


@pytest.fixture(scope="module")
def http(decoder_process: DecoderProcess, token: str) -> Iterator[httpx.Client]:
    """Plain HTTP with that key."""
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=decoder_process.url, headers=headers, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def client(decoder_process: DecoderProcess, token: str) -> Iterator[OpenAI]:
    """The stock client with that key."""
    with OpenAI(base_url=f"{decoder_process.url}/v1", api_key=token, max_retries=0) as client:
        yield client
