"""A thin client over the REST routes: typed contracts in, typed views out."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from armature.contracts.aliases import AliasView
from armature.contracts.artifacts import ArtifactManifest
from armature.contracts.base import View
from armature.contracts.datasets import DatasetFormat
from armature.contracts.errors import ErrorEnvelope, ErrorObject
from armature.contracts.files import DatasetView, FilePurpose, FileView
from armature.contracts.jobs import TERMINAL_STATES, JobView
from armature.contracts.profiles import ProfileVersionCreateRequest, ProfileVersionView, ProfileView
from armature.contracts.specs import JobSpec
from armature.contracts.tenants import ApiKeyCreated, Scope, TenantView

V = TypeVar("V", bound=View)

_POLL_SECONDS = 0.3


class RequestFailed(Exception):
    """The platform answered with an error; ``error`` is the object of the envelope."""

    def __init__(self, status: int, error: ErrorObject) -> None:
        super().__init__(f"{status} {error.code}: {error.message}" + (f" ({error.param})" if error.param else ""))
        self.status = status
        self.error = error


class JobFailed(Exception):
    """A job ended without success; ``job`` is its last state."""

    def __init__(self, job: JobView) -> None:
        reason = job.error.message if job.error else "no error recorded"
        super().__init__(f"job {job.id} ({job.kind}) {job.state}: {reason}")
        self.job = job


class Client:
    """Speaks to one API with one key; a context manager.

    Args:
        base_url: Of the API, without ``/v1``.
        api_key: The tenant's key.
        timeout: Seconds per request; uploads of large files need more.
    """

    def __init__(self, base_url: str, api_key: str, *, timeout: float = 60.0) -> None:
        headers = {"Authorization": f"Bearer {api_key}"}
        transport = httpx.HTTPTransport(retries=3)  # of connections only: a request that was sent is not repeated
        self._http = httpx.Client(base_url=f"{base_url}/v1/", headers=headers, timeout=timeout, transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- tenants and keys (platform scope) --------------------------------------------------------------------------

    def ensure_tenant(self, name: str) -> TenantView:
        """The tenant of that name, created if there is none."""
        try:
            return self._send(TenantView, "POST", "tenants", json={"name": name})
        except RequestFailed as failed:
            if failed.status != 409:
                raise
        return next(TenantView(**item) for item in self._pages("tenants") if item["name"] == name)

    def create_key(self, tenant_id: str, scopes: Iterable[Scope]) -> ApiKeyCreated:
        """Issue a key; the answer is the only place that holds its token."""
        return self._send(ApiKeyCreated, "POST", f"tenants/{tenant_id}/keys", json={"scopes": list(scopes)})

    def revoke_key(self, key_id: str) -> None:
        """Revoke a key; decoders learn of it within seconds."""
        self._call("DELETE", f"keys/{key_id}")

    # --- files and data sets ----------------------------------------------------------------------------------------

    def upload(self, path: Path, purpose: FilePurpose) -> FileView:
        """Upload one file, streaming."""
        with path.open("rb") as file:
            return self._send(FileView, "POST", "files", files={"file": (path.name, file)}, data={"purpose": purpose})

    def create_dataset(self, name: str, format: DatasetFormat, rows: Iterable[Mapping[str, Any]]) -> DatasetView:
        """Upload rows as JSON lines and register them."""
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        file = self._send(
            FileView, "POST", "files", files={"file": (f"{name}.jsonl", lines)}, data={"purpose": "dataset"}
        )
        return self._send(DatasetView, "POST", "datasets", json={"name": name, "file_id": file.id, "format": format})

    # --- jobs -------------------------------------------------------------------------------------------------------

    def submit(self, spec: JobSpec, *, shared: bool = False) -> JobView:
        """Submit a job. An idempotency key makes repeating it after a broken connection safe."""
        body = {"spec": spec.model_dump(mode="json"), "shared": shared}
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        try:
            return self._send(JobView, "POST", "jobs", json=body, headers=headers)
        except httpx.TransportError:
            return self._send(JobView, "POST", "jobs", json=body, headers=headers)

    def job(self, job_id: str) -> JobView:
        """A job as it is now."""
        return self._send(JobView, "GET", f"jobs/{job_id}")

    def cancel(self, job_id: str) -> JobView:
        """Ask for a job's end."""
        return self._send(JobView, "POST", f"jobs/{job_id}/cancel")

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """The job's whole log."""
        return list(self._pages(f"jobs/{job_id}/events"))

    def wait(
        self, job_id: str, *, timeout: float = 3600.0, on_progress: Callable[[JobView], object] | None = None
    ) -> JobView:
        """Poll until the job has succeeded.

        Raises:
            JobFailed: It failed or was cancelled.
            TimeoutError: It is still under way after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            job = self.job(job_id)
            if on_progress is not None:
                on_progress(job)
            if job.state == "succeeded":
                return job
            if job.state in TERMINAL_STATES:
                raise JobFailed(job)
            time.sleep(_POLL_SECONDS)
        raise TimeoutError(f"job {job_id} is still {job.state} after {timeout:g} s")

    # --- artifacts --------------------------------------------------------------------------------------------------

    def manifest(self, artifact_id: str) -> ArtifactManifest:
        """What an artifact's files are, and what it was made from."""
        return ArtifactManifest.model_validate_json(self._call("GET", f"artifacts/{artifact_id}/manifest").content)

    def artifact_file(self, artifact_id: str, path: str) -> bytes:
        """One file of an artifact, whole; for reports and manifests, not for weights."""
        return self._call("GET", f"artifacts/{artifact_id}/files/{path}").content

    # --- profiles ---------------------------------------------------------------------------------------------------

    def ensure_profile(self, name: str, description: str = "") -> ProfileView:
        """The profile of that name, created if there is none."""
        try:
            return self._send(ProfileView, "POST", "profiles", json={"name": name, "description": description})
        except RequestFailed as failed:
            if failed.status != 409:
                raise
        return self._send(ProfileView, "GET", f"profiles/{name}")

    def create_version(self, profile: str, version: ProfileVersionCreateRequest) -> ProfileVersionView:
        """Freeze a combination as the profile's next version."""
        body = version.model_dump(mode="json")
        return self._send(ProfileVersionView, "POST", f"profiles/{profile}/versions", json=body)

    def move_alias(self, profile: str, alias: str, version: int) -> AliasView:
        """Point an alias at a version."""
        return self._send(AliasView, "PUT", f"profiles/{profile}/aliases/{alias}", json={"version": version})

    # --- the wire ---------------------------------------------------------------------------------------------------

    def _send(self, view: type[V], method: str, path: str, **request: Any) -> V:
        return view.model_validate(self._call(method, path, **request).json())

    def _pages(self, path: str) -> Iterable[dict[str, Any]]:
        after: str | None = None
        while True:
            page = self._call("GET", path, params={"limit": 100, **({"after": after} if after else {})}).json()
            yield from page["data"]
            if not page["has_more"]:
                return
            after = page["last_id"]

    def _call(self, method: str, path: str, **request: Any) -> httpx.Response:
        response = self._http.request(method, path, **request)
        if response.is_success:
            return response
        try:
            error = ErrorEnvelope.model_validate_json(response.content).error
        except ValidationError:  # something between us and the platform answered
            error = ErrorObject(message=response.text[:500], type="server_error", code="not_an_envelope")
        raise RequestFailed(response.status_code, error)
