"""The client: an object per API key with an attribute per resource."""

from __future__ import annotations

import copy
from types import TracebackType

import httpx

from armature.client.access import API_URL, DECODER_URL, find_key, find_url
from armature.client.aio.artifacts import AsyncArtifacts
from armature.client.aio.base_models import AsyncBaseModels
from armature.client.aio.chat import AsyncChat, AsyncCompletions
from armature.client.aio.datasets import AsyncDatasets
from armature.client.aio.files import AsyncFiles
from armature.client.aio.jobs import AsyncJobs
from armature.client.aio.models import AsyncModels
from armature.client.aio.profiles import AsyncProfiles
from armature.client.aio.tenants import AsyncAudit, AsyncKeys, AsyncTenants
from armature.client.aio.transport import AsyncTransport


class AsyncClient:
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
        self._api = httpx.AsyncClient(base_url=_root(api_url), headers=headers, timeout=limits)
        self._decoder = httpx.AsyncClient(base_url=_root(decoder_url), headers=headers, timeout=limits)
        self._open(max_retries)

    def _open(self, max_retries: int, timeout: float | None = None) -> None:
        api, decoder = (AsyncTransport(http, max_retries, timeout) for http in (self._api, self._decoder))
        self.jobs = AsyncJobs(api)
        self.files = AsyncFiles(api)
        self.datasets = AsyncDatasets(api)
        self.base_models = AsyncBaseModels(api)
        self.artifacts = AsyncArtifacts(api)
        self.profiles = AsyncProfiles(api)
        self.tenants = AsyncTenants(api)
        self.keys = AsyncKeys(api)
        self.audit = AsyncAudit(api)
        self.models = AsyncModels(decoder)
        self.chat = AsyncChat(decoder)
        self.completions = AsyncCompletions(decoder)

    def with_options(self, *, timeout: float | None = None, max_retries: int = 2) -> AsyncClient:
        """Copy the client with another retry policy, on the same connections. Closing one closes both."""
        other = copy.copy(self)
        other._open(max_retries, timeout)
        return other

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._api.aclose()
        await self._decoder.aclose()


def _root(url: str) -> str:
    return f"{url.rstrip('/').removesuffix('/v1')}/v1/"
