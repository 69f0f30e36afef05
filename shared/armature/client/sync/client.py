"""The client: one object per key, one attribute per resource."""

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
        """The same client on the same connections, patient in another way. Closing one closes both."""
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
