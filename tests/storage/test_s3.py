"""The S3 store with a server that is missing, slow, failing, truncating, or without conditional writes."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import urllib3
from pydantic import SecretStr, ValidationError

from armature.errors import StorageRefused, StorageUnavailable
from armature.settings import StoreSettings
from armature.storage import open_store
from armature.storage.base import ArtifactStore
from armature.storage.minio import MinioArtifactStore
from tests.support.faulty_proxy import FaultyProxy
from tests.support.processes import reserve_port
from tests.support.servers import S3Server, run_s3


def _settings(server: S3Server, **changes: object) -> StoreSettings:
    return server.settings().model_copy(update=changes)


@pytest.fixture
def store(s3_server: S3Server, proxy: FaultyProxy) -> MinioArtifactStore:
    """A store behind the proxy, with its bucket made."""
    store = MinioArtifactStore(_settings(s3_server, endpoint=f"127.0.0.1:{proxy.port}", bucket="behind-a-proxy"))
    for info in store.list(""):
        store.delete(info.key)
    store.put_bytes("k", b"hello" * 1000)
    return store


@pytest.fixture
def impatient_store(store: MinioArtifactStore, s3_server: S3Server, proxy: FaultyProxy) -> MinioArtifactStore:
    """The same bucket, with a timeout of half a second."""
    settings = _settings(s3_server, endpoint=f"127.0.0.1:{proxy.port}", bucket="behind-a-proxy")
    return MinioArtifactStore(settings, timeout=urllib3.Timeout(connect=0.5, read=0.5))


def test_a_missing_server_is_unavailable(s3_server: S3Server, tmp_path: Path) -> None:
    store = open_store(_settings(s3_server, endpoint=f"127.0.0.1:{reserve_port()}"))
    started = time.monotonic()
    for call in (
        lambda: store.get_bytes("k"),
        lambda: store.put_bytes("k", b""),
        lambda: store.create("k", b""),
        lambda: store.head("k"),
        lambda: store.delete("k"),
        lambda: list(store.list("")),
        lambda: store.get_file("k", tmp_path / "k"),
    ):
        with pytest.raises(StorageUnavailable):
            call()
    assert time.monotonic() - started < 15
    assert not (tmp_path / "k").exists()


@pytest.mark.process
def test_a_store_opened_before_its_server_works_once_it_is_up() -> None:
    with run_s3() as server:
        server.kill()
        store = open_store(server.settings())
        with pytest.raises(StorageUnavailable):
            store.put_bytes("k", b"1")
        server.start()
        store.put_bytes("k", b"2")
        server.kill()
        server.start()
        assert store.get_bytes("k") == b"2"


def test_a_bucket_that_vanished_is_no_outage(s3_server: S3Server) -> None:
    store = MinioArtifactStore(_settings(s3_server, bucket="vanishing"))
    store.put_bytes("k", b"1")
    store.delete("k")
    store._connection.remove_bucket("vanishing")
    for call in (lambda: store.get_bytes("k"), lambda: store.put_bytes("k", b""), lambda: list(store.list(""))):
        with pytest.raises(StorageRefused, match=r"NoSuchBucket; the bucket was removed") as raised:
            call()
        assert (raised.value.retryable, raised.value.code) == (False, "storage_refused")


@pytest.mark.parametrize(
    ("endpoint", "remedy"),
    [
        ("http://127.0.0.1:9000", "write 127.0.0.1:9000, with ARMATURE_STORE__SECURE=false for http"),
        ("https://s3.example.org/", "write s3.example.org$"),
        ("s3.example.org/bucket", "write s3.example.org$"),
    ],
)
@pytest.mark.parametrize("field", ["endpoint", "public_endpoint"])
def test_an_endpoint_is_no_url(field: str, endpoint: str, remedy: str) -> None:
    fields = {"endpoint": "s3:9000"} | {field: endpoint}
    with pytest.raises(ValidationError) as raised:
        StoreSettings(kind="s3", access_key="a", secret_key=SecretStr("b"), **fields)
    (error,) = raised.value.errors()
    assert error["loc"] == (field,)
    assert re.search(f"must be host:port and no URL: {remedy}", error["msg"])


def test_wrong_secret_is_named_and_not_shown(s3_server: S3Server) -> None:
    store = open_store(_settings(s3_server, secret_key=SecretStr("not-the-secret")))
    with pytest.raises(StorageRefused, match="AccessDenied; check ARMATURE_STORE__ACCESS_KEY") as raised:
        store.get_bytes("k")
    with pytest.raises(StorageRefused):
        store.create("k", b"")
    assert "not-the-secret" not in str(raised.value)


def test_two_processes_make_one_bucket(s3_server: S3Server) -> None:
    settings = s3_server.settings()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: open_store(settings).put_bytes(name, b""), "abcd"))
    assert [info.key for info in open_store(settings).list("")] == list("abcd")


def test_a_busy_server_is_retried(store: ArtifactStore, proxy: FaultyProxy) -> None:
    proxy.faults.refuse = 2
    assert store.get_bytes("k") == b"hello" * 1000
    proxy.faults.refuse = 2
    store.put_bytes("k", b"new")
    assert store.get_bytes("k") == b"new"


def test_a_server_that_stays_busy_is_unavailable(store: ArtifactStore, proxy: FaultyProxy) -> None:
    proxy.faults.refuse = 1000
    with pytest.raises(StorageUnavailable):
        store.get_bytes("k")
    with pytest.raises(StorageUnavailable):
        store.put_bytes("k", b"")


def test_a_silent_server_times_out(impatient_store: ArtifactStore, proxy: FaultyProxy) -> None:
    proxy.faults.hang_seconds = 2
    started = time.monotonic()
    with pytest.raises(StorageUnavailable):
        impatient_store.get_bytes("k")
    assert time.monotonic() - started < 10


def test_a_truncated_body_is_retried(store: ArtifactStore, proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.faults.cut_off = 2
    assert store.get_bytes("k") == b"hello" * 1000
    proxy.faults.cut_off = 2
    store.get_file("k", tmp_path / "k")
    assert (tmp_path / "k").read_bytes() == b"hello" * 1000


def test_a_body_truncated_every_time_leaves_no_file(store: ArtifactStore, proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.faults.cut_off = 1000
    with pytest.raises(StorageUnavailable):
        store.get_file("k", tmp_path / "k")
    with pytest.raises(StorageUnavailable):
        store.get_bytes("k")
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_fails_half_way_shows_nothing(store: ArtifactStore, proxy: FaultyProxy, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"x" * (33 << 20))
    proxy.faults.matches = lambda method, path: method == "PUT" and "partNumber=2" in path
    proxy.faults.refuse = 1000
    with pytest.raises(StorageUnavailable):
        store.put_file("large", large)
    assert [info.key for info in store.list("")] == ["k"]


@pytest.mark.parametrize(
    ("one_at_a_time", "drop_headers", "atomic"),
    [(True, frozenset(), True), (False, frozenset({"if-none-match"}), False)],
    ids=["conditional writes", "condition ignored"],
)
def test_the_probe_tells_servers_apart(
    store: MinioArtifactStore, proxy: FaultyProxy, one_at_a_time: bool, drop_headers: frozenset[str], atomic: bool
) -> None:
    proxy.faults.matches = lambda method, path: method == "PUT"
    proxy.faults.one_at_a_time = one_at_a_time
    proxy.faults.drop_headers = drop_headers
    assert store.atomic_create is atomic
    assert store.create("new", b"first")
    assert not store.create("new", b"second")
    assert store.get_bytes("new") == b"first"
    assert [info.key for info in store.list("")] == ["k", "new"]
    asked = proxy.faults.seen
    assert store.create("newer", b"")
    assert proxy.faults.seen == asked + 1


def test_a_busy_server_does_not_decide_the_probe(store: MinioArtifactStore, proxy: FaultyProxy) -> None:
    proxy.faults.matches = lambda method, path: method == "PUT"
    proxy.faults.one_at_a_time = True
    proxy.faults.refuse = 1
    with pytest.raises(StorageUnavailable):
        store.create("new", b"")
    assert store.create("new", b"")
    assert store.atomic_create


def test_one_creator_wins_where_writes_are_conditional(store: MinioArtifactStore, proxy: FaultyProxy) -> None:
    proxy.faults.matches = lambda method, path: method == "PUT"
    proxy.faults.one_at_a_time = True
    assert store.atomic_create
    barrier = threading.Barrier(8)

    def create(racer: int) -> bool:
        barrier.wait()
        return store.create("race", b"%d" % racer)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert won.count(True) == 1
    assert store.get_bytes("race") == b"%d" % won.index(True)


def test_a_lost_answer_to_a_conditional_write_is_not_taken_for_a_lost_race(
    impatient_store: MinioArtifactStore, proxy: FaultyProxy
) -> None:
    vars(impatient_store)["atomic_create"] = True  # the probe would need patience
    proxy.faults.hang_seconds = 2
    proxy.faults.matches = lambda method, path: method == "PUT"
    asked = proxy.faults.seen
    with pytest.raises(StorageUnavailable):
        impatient_store.create("new", b"1")
    assert proxy.faults.seen == asked + 1
