"""The stores that the conformance suite runs on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from armature.storage import open_store
from armature.storage.base import ArtifactStore
from armature.storage.local import LocalArtifactStore
from armature.storage.memory import MemoryArtifactStore
from tests.support.faulty_proxy import FaultyProxy, run_faulty_proxy
from tests.support.servers import S3Server

_OPENERS: dict[str, Callable[[pytest.FixtureRequest], ArtifactStore]] = {
    "local": lambda request: LocalArtifactStore(request.getfixturevalue("tmp_path") / "store"),
    "memory": lambda request: MemoryArtifactStore(),
    "s3": lambda request: open_store(request.getfixturevalue("s3_server").settings()),
}


@pytest.fixture(params=sorted(_OPENERS))
def store(request: pytest.FixtureRequest) -> ArtifactStore:
    return _OPENERS[request.param](request)


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    with run_faulty_proxy(s3_server.port) as running:
        yield running


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    """A file to store."""
    path = tmp_path / "payload.bin"
    path.write_bytes(bytes(range(256)) * 300)
    return path
