"""The client: an object per API key with an attribute per resource."""

from __future__ import annotations

import copy
from types import TracebackType

import httpx

from armature.client.access import API_URL, DECODER_URL, find_key, find_url
from armature.client.sync.artifacts import Artifacts
from armature.client.sync.base_models import BaseModels
from armature.client.sync.chat import Chat, Completions
from armature.client.sync.datasets import Datasets
from armature.client.sync.files import Files
from armature.client.sync.jobs import Jobs
from armature.client.sync.models import Models
from armature.client.sync.profiles import Profiles
from armature.client.sync.tenants import Audit, Keys, Tenants
from armature.client.sync.transport import Transport


class Client:
    """A client of the API and the decoder with one key; a context manager.

    Args:
        api_url: Address of the API, without ``/v1``; by default ``ARMATURE_API_URL``.
        api_key: The tenant's key; by default ``ARMATURE_API_KEY``.
        decoder_url: Address of the decoder, for ``chat``, ``completions`` and ``models``; by default
            ``ARMATURE_DECODER_URL``, or else the API's.
        timeout: Seconds to connect, and between two pieces of an answer.
        max_retries: Maximum number of retries of a call without an answer, or with one that a retry may change.

    Raises:
        ConfigurationError: A URL or the key is invalid, or neither given nor in the environment.
    """

    def __init__(
        self,
        api_url: str | None = None,
        api_key: str | None = None,
        *,
        decoder_url: str | None = None,
        timeout: float = 60.0,
        max_retries: int = 2,
    ) -> None:
        api_url = find_url(api_url, API_URL)
        decoder_url = find_url(decoder_url, DECODER_URL, default=api_url)
        headers = {"Authorization": f"Bearer {find_key(api_key)}"}
        limits = httpx.Timeout(timeout)
        self._api = httpx.Client(base_url=_root(api_url), headers=headers, timeout=limits)
        self._decoder = httpx.Client(base_url=_root(decoder_url), headers=headers, timeout=limits)
        self._open(max_retries)

    def _open(self, max_retries: int, timeout: float | None = None) -> None:
        api, decoder = (Transport(http, max_retries, timeout) for http in (self._api, self._decoder))
        self.jobs = Jobs(api)
        self.files = Files(api)
        self.datasets = Datasets(api)
        self.base_models = BaseModels(api)
        self.artifacts = Artifacts(api)
        self.profiles = Profiles(api)
        self.tenants = Tenants(api)
        self.keys = Keys(api)
        self.audit = Audit(api)
        self.models = Models(decoder)
        self.chat = Chat(decoder)
        self.completions = Completions(decoder)

    def with_options(self, *, timeout: float | None = None, max_retries: int = 2) -> Client:
        """Copy the client with another retry policy, on the same connections. Closing one closes both."""
        other = copy.copy(self)
        other._open(max_retries, timeout)
        return other

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._api.close()
        self._decoder.close()


def _root(url: str) -> str:
    return f"{url.rstrip('/').removesuffix('/v1')}/v1/"
