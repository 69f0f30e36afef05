"""The client: one object per key, one attribute per resource."""

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
    """Speaks to the API and to the decoder with one key; a context manager.

    Args:
        api_url: Of the API, without ``/v1``; by default from ``ARMATURE_API_URL``.
        api_key: The tenant's key; by default from ``ARMATURE_API_KEY``.
        decoder_url: Of the decoder, for ``chat``, ``completions`` and ``models``; by default from
            ``ARMATURE_DECODER_URL``, or else the API's.
        timeout: Seconds until a connection stands, and between two pieces of an answer.
        max_retries: How often a call is tried again that got no answer, or one that says that trying again helps.

    Raises:
        ConfigurationError: No URL or key is given, nor in the environment, or one that can not be one.
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
        """The same client on the same connections, patient in another way. Closing one closes both."""
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
