"""An artifact store on S3: MinIO or any other server, through calls that all of them support."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import quote

import certifi
import urllib3
from minio import Minio
from minio.datatypes import Object
from minio.error import MinioException, S3Error
from typing_extensions import Buffer
from urllib3.exceptions import HTTPError

from armature.errors import StorageRefused, StorageUnavailable
from armature.settings import StoreSettings
from armature.storage.base import ObjectInfo, ObjectNotFound, check_key
from armature.storage.files import replacing

T = TypeVar("T")

_BUSY = (429, 500, 502, 503, 504)
_TIMEOUT = urllib3.Timeout(connect=2.0, read=30.0)
_RETRIES = urllib3.Retry(
    total=3,
    connect=2,
    read=2,
    backoff_factor=0.2,
    status_forcelist=_BUSY,
    raise_on_status=False,
    respect_retry_after_header=False,  # it could ask for minutes; a caller must wait for seconds only
)
_BODY_ATTEMPTS = 3
_PART_BYTES = 16 << 20
_CONNECT_RETRIES = urllib3.Retry(total=2, connect=2, read=0, status=0, other=0, redirect=0, raise_on_redirect=False)
_CREATE_EXPIRY = timedelta(minutes=15)  # far more than the clock skew
_CREATED, _TAKEN, _CONFLICT = 200, 412, 409
_REFUSED = {
    "AccessDenied": "check ARMATURE_STORE__ACCESS_KEY, its secret and its permissions",
    "InvalidAccessKeyId": "check ARMATURE_STORE__ACCESS_KEY",
    "SignatureDoesNotMatch": "check ARMATURE_STORE__SECRET_KEY",
    "RequestTimeTooSkewed": "set this machine's clock",
    "AuthorizationHeaderMalformed": "check ARMATURE_STORE__REGION",
    "PermanentRedirect": "check ARMATURE_STORE__REGION and ARMATURE_STORE__ENDPOINT",
    "InvalidBucketName": "check ARMATURE_STORE__BUCKET",
    "NoSuchBucket": "the bucket was removed; restore it, or restart to make an empty one",
}
"""Codes of S3 that no retry cures, and what to do about each."""
_FORBIDDEN = 403
_PROBE_RACERS, _PROBE_ROUNDS = 12, 12  # a server that checks, then writes, passes two rounds in five


class MinioArtifactStore:
    """:class:`armature.storage.base.ArtifactStore` in a bucket, which is made if missing.

    Args:
        settings: Settings with ``kind="s3"``.
        timeout: Seconds to connect, and to wait for each read of a response.
    """

    def __init__(self, settings: StoreSettings, *, timeout: urllib3.Timeout = _TIMEOUT) -> None:
        self._bucket = settings.bucket
        self._http = urllib3.PoolManager(
            timeout=timeout,
            retries=_RETRIES,
            maxsize=32,
            cert_reqs="CERT_REQUIRED",
            ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
        )
        self._connection = self._connect(settings.endpoint, settings)
        self._public = self._connect(settings.public_endpoint or settings.endpoint, settings)

    def _connect(self, endpoint: str, settings: StoreSettings) -> Minio:
        return Minio(
            endpoint,
            access_key=settings.access_key,
            secret_key=settings.secret_key.get_secret_value(),
            secure=settings.secure,
            region=settings.region,
            http_client=self._http,
        )

    def put_bytes(self, key: str, data: bytes) -> None:
        """See the port."""
        with _translated(check_key(key)):
            self._client.put_object(self._bucket, key, io.BytesIO(data), len(data), part_size=_PART_BYTES)

    def put_file(self, key: str, path: Path) -> None:
        """See the port. Large files are multipart uploads; the object appears when all parts are there."""
        with path.open("rb") as file, _translated(check_key(key)):
            size = path.stat().st_size
            self._client.put_object(self._bucket, key, file, size, part_size=_PART_BYTES)

    def create(self, key: str, data: bytes) -> bool:
        """See the port."""
        if self.atomic_create:
            status = self._put_if_absent(check_key(key), data)
            if status not in (_CREATED, _TAKEN):
                raise StorageUnavailable(f"the object store answered {status} to a conditional write")
            return status == _CREATED
        if self.head(key) is not None:
            return False
        self.put_bytes(key, data)
        return True

    @cached_property
    def atomic_create(self) -> bool:
        """See the port. Probed by concurrent writes: some servers ignore the condition or check it early."""
        prefix = f"probes/{uuid.uuid4().hex}"
        with ThreadPoolExecutor(_PROBE_RACERS) as racers:
            return all(self._one_wins(f"{prefix}-{number}", racers) for number in range(_PROBE_ROUNDS))

    def get_bytes(self, key: str) -> bytes:
        """See the port."""

        def read() -> bytes:
            with self._open(key) as body:
                return body.read()

        return _retry_if_cut_off(read)

    def get_file(self, key: str, path: Path) -> None:
        """See the port."""

        def download() -> None:
            with self._open(key) as source, replacing(path) as target:
                shutil.copyfileobj(source, target, 1 << 20)

        _retry_if_cut_off(download)

    def head(self, key: str) -> ObjectInfo | None:
        """See the port."""
        try:
            with _translated(check_key(key)):
                return _info(self._client.stat_object(self._bucket, key))
        except ObjectNotFound:
            return None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See the port."""
        with _translated(prefix):
            for found in self._client.list_objects(self._bucket, prefix=prefix, recursive=True):
                yield _info(found)

    def delete(self, key: str) -> None:
        """See the port."""
        with _translated(check_key(key)):
            self._client.remove_object(self._bucket, key)

    def link(self, key: str, seconds: int, filename: str) -> str:
        """See the port. Signed locally for the store's public endpoint, without a call to the server."""
        disposition = f'attachment; filename="{quote(filename)}"'
        with _translated(check_key(key)):
            return self._public.presigned_get_object(
                self._bucket,
                key,
                expires=timedelta(seconds=seconds),
                response_headers={"response-content-disposition": disposition},
            )

    @cached_property
    def _client(self) -> Minio:
        """The connection, after the bucket was found or made."""
        if not self._connection.bucket_exists(self._bucket):
            try:
                self._connection.make_bucket(self._bucket)
            except S3Error as error:
                if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):  # a concurrent process made it
                    raise
        return self._connection

    def _open(self, key: str) -> BinaryIO:
        with _translated(check_key(key)):
            return io.BufferedReader(_Body(self._client.get_object(self._bucket, key), key), 1 << 20)

    def _put_if_absent(self, key: str, data: bytes) -> int:
        """Put an object if the key is free, and return the HTTP status.

        The minio package has no argument for the condition, and its signing is private. A presigned URL is public and
        leaves ``If-None-Match`` outside the signature, where S3 allows it. Not retried after a lost response: the
        retry would fail because of the first put.
        """
        condition = {"If-None-Match": "*"}
        with _translated(key):
            url = self._client.get_presigned_url("PUT", self._bucket, key, expires=_CREATE_EXPIRY)
            answer = self._http.request("PUT", url, body=data, headers=condition, retries=_CONNECT_RETRIES)
        if answer.status == _FORBIDDEN:
            raise StorageRefused(f"the object store answered {answer.status} to a write; {_REFUSED['AccessDenied']}")
        if answer.status in _BUSY:
            raise StorageUnavailable(f"the object store answered {answer.status}")
        return answer.status

    def _one_wins(self, key: str, racers: ThreadPoolExecutor) -> bool:
        self.delete(key)  # connects and makes the bucket before the race, not during it
        try:
            statuses = list(racers.map(lambda racer: self._put_if_absent(key, b"%d" % racer), range(_PROBE_RACERS)))
        finally:
            self.delete(key)
        return statuses.count(_CREATED) == 1 and set(statuses) <= {_CREATED, _TAKEN, _CONFLICT}


class _CutOff(StorageUnavailable):
    """The connection broke in the middle of an object."""


class _Body(io.RawIOBase):
    """The stream of an object's bytes. A body shorter than its announced length is an error, not an end."""

    def __init__(self, response: urllib3.BaseHTTPResponse, key: str) -> None:
        self._response = response
        self._key = key

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        try:
            data = self._response.read(len(view))
        except HTTPError as error:
            raise _CutOff(f"the object store broke off in the middle of {self._key}") from error
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._response.close()  # a body read to its end has already returned its connection to the pool
        super().close()


def _retry_if_cut_off(read: Callable[[], T]) -> T:
    for _ in range(_BODY_ATTEMPTS - 1):
        with contextlib.suppress(_CutOff):
            return read()
    return read()


def _info(found: Object) -> ObjectInfo:
    assert found.object_name is not None
    assert found.last_modified is not None
    return ObjectInfo(found.object_name, found.size or 0, found.etag or "", found.last_modified.timestamp())


@contextlib.contextmanager
def _translated(key: str) -> Iterator[None]:
    """Convert the package's errors to the port's: ObjectNotFound, StorageRefused, or StorageUnavailable."""
    try:
        yield
    except S3Error as error:
        if error.code == "NoSuchKey":
            raise ObjectNotFound(f"no object {key}") from error
        if error.code in _REFUSED:
            raise StorageRefused(f"the object store refused: {error.code}; {_REFUSED[error.code]}") from error
        raise StorageUnavailable(f"the object store refused: {error.code}") from error
    except (MinioException, HTTPError) as error:
        raise StorageUnavailable(f"the object store does not answer: {type(error).__name__}") from error
