"""What every store promises, on every store: a directory, memory, and a real S3 server over HTTP."""

import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armature.errors import InvalidRequest
from armature.storage.base import ArtifactStore, ObjectNotFound, check_key
from armature.storage.minio import MinioArtifactStore
from tests.support.processes import wait_until
from tests.support.servers import S3_LISTING_PAGE

ODD_KEYS = [
    "a",
    "deep/er/and/deeper/still",
    "spaces and +plus & more=?.txt",
    "percent%20encoded%2Fslash",
    "ünï-cödé/漢字/🦊",
    "...",
    ".hidden/..almost",
    "~tilde/$dollar/'quote'/\"double\"/<xml>&amp;",
    "#fragment",
    "x" * 255,
]
BAD_KEYS = [
    "",
    "/",
    "/absolute",
    "a//b",
    "a/",
    "..",
    "../up",
    "a/../../b",
    "./a",
    "a/.",
    "a\\b",
    "nul\0",
    "line\nbreak",
]
BAD_KEYS += ["\ud800", "x" * 256, "a/" * 600 + "b"]


@pytest.mark.parametrize("data", [b"", b"hello", bytes(range(256)) * 1000])
def test_what_is_put_comes_back(store: ArtifactStore, data: bytes) -> None:
    store.put_bytes("k/1", data)
    assert store.get_bytes("k/1") == data


def test_a_put_replaces(store: ArtifactStore) -> None:
    etags = []
    for data in (b"first, longer", b"second", b"second", b"third!"):
        store.put_bytes("k", data)
        assert store.get_bytes("k") == data
        info = store.head("k")
        assert info is not None
        etags.append(info.etag)
    assert len({etags[0], etags[1], etags[3]}) == 3


def test_head_tells_size_and_time(store: ArtifactStore) -> None:
    before = time.time()
    store.put_bytes("k", b"12345")
    info = store.head("k")
    assert info is not None
    assert (info.key, info.size) == ("k", 5)
    assert before - 2 <= info.modified_at <= time.time() + 2
    assert store.head("k") == info


def test_large_file_streams_both_ways(store: ArtifactStore, tmp_path: Path) -> None:
    source, target = tmp_path / "large", tmp_path / "new/folder/copy"
    block = os.urandom(1 << 20)
    with source.open("wb") as file:
        for index in range(37):  # three parts on S3, the last one small
            file.write(block[index:] + block[:index])
    store.put_file("large", source)
    store.get_file("large", target)
    assert _sha256(target) == _sha256(source)
    info = store.head("large")
    assert info is not None
    assert info.size == 37 << 20


def test_missing_keys(store: ArtifactStore, tmp_path: Path) -> None:
    store.put_bytes("folder/object", b"1")
    for key in ("nothing", "folder", "folder/objec", "folder/other"):
        assert store.head(key) is None
        with pytest.raises(ObjectNotFound):
            store.get_bytes(key)
        with pytest.raises(ObjectNotFound):
            store.get_file(key, tmp_path / "target")
        store.delete(key)
    assert not (tmp_path / "target").exists()
    assert store.get_bytes("folder/object") == b"1"


def test_missing_source_file_stores_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.put_file("k", tmp_path / "missing")
    assert store.head("k") is None


def test_a_link_downloads_one_object_without_a_key(store: ArtifactStore) -> None:
    store.put_bytes("dir/secret.json", b"content")
    store.put_bytes("dir/other.json", b"other")
    url = store.link("dir/secret.json", 60, "näme.json")
    if not isinstance(store, MinioArtifactStore):
        assert url is None  # a folder has no address
        return
    answer = httpx.get(url)
    assert (answer.status_code, answer.content) == (200, b"content")
    assert httpx.get(url.replace("secret", "other")).status_code == 403
    assert httpx.put(url, content=b"mine").status_code == 403
    assert store.get_bytes("dir/secret.json") == b"content"
    expired = store.link("dir/secret.json", 1, "name.json")
    wait_until(lambda: httpx.get(expired).status_code == 403, 10)


def test_delete(store: ArtifactStore) -> None:
    store.put_bytes("a", b"1")
    store.put_bytes("ab", b"2")
    store.delete("a")
    assert [info.key for info in store.list("")] == ["ab"]
    store.delete("a")
    assert store.create("a", b"again")


def test_list_is_by_prefix_and_in_key_order(store: ArtifactStore) -> None:
    keys = ["t/a-b", "t/a/b", "t/a/c/d", "t/aa", "t/b", "tt", "u/é", "u/z"]
    for key in reversed(keys):
        store.put_bytes(key, key.encode())

    def listed(prefix: str) -> list[str]:
        return [info.key for info in store.list(prefix)]

    assert listed("") == sorted(keys)
    assert listed("t/") == keys[:5]
    assert listed("t/a") == keys[:4]
    assert listed("t/a/") == ["t/a/b", "t/a/c/d"]
    assert listed("t/a/c/d") == ["t/a/c/d"]
    assert listed("nothing/") == []
    assert [info.size for info in store.list("t")] == [len(key) for key in keys[:6]]


def test_list_goes_beyond_one_page(store: ArtifactStore) -> None:
    keys = [f"page/{number:04d}" for number in range(2 * S3_LISTING_PAGE + 3)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put_bytes(key, b""), keys))
    assert [info.key for info in store.list("page/")] == keys


def test_odd_keys(store: ArtifactStore) -> None:
    for key in ODD_KEYS:
        store.put_bytes(key, key.encode())
    assert [info.key for info in store.list("")] == sorted(ODD_KEYS)
    for key in ODD_KEYS:
        assert store.get_bytes(key) == key.encode()
        assert not store.create(key, b"taken")
        store.delete(key)
        assert store.create(key, b"free")


def test_bad_keys_are_refused_everywhere(store: ArtifactStore, payload: Path) -> None:
    target = payload.with_name("target")
    calls: list[Callable[[str], object]] = [
        lambda key: store.put_bytes(key, b""),
        lambda key: store.put_file(key, payload),
        lambda key: store.create(key, b""),
        store.get_bytes,
        lambda key: store.get_file(key, target),
        store.head,
        store.delete,
    ]
    for key, call in itertools.product(BAD_KEYS, calls):
        with pytest.raises(InvalidRequest):
            call(key)
    assert list(store.list("")) == []


@given(st.text(max_size=40))
def test_a_good_key_names_a_place_below_the_root(key: str) -> None:
    root = Path("/some/store")
    try:
        check_key(key)
    except InvalidRequest:
        return
    path = Path(os.path.normpath(root / key))
    assert path.is_relative_to(root)
    assert path.relative_to(root).as_posix() == key


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.binary(max_size=8)), max_size=12))
def test_behaves_like_a_dictionary(store: ArtifactStore, writes: list[tuple[str, bytes | None]]) -> None:
    expected: dict[str, bytes] = {}
    for name in "abc":
        store.delete(name)
    for name, data in writes:
        if data is None:
            store.delete(name)
            expected.pop(name, None)
        else:
            store.put_bytes(name, data)
            expected[name] = data
    assert {info.key: store.get_bytes(info.key) for info in store.list("")} == expected


def test_create_keeps_the_first(store: ArtifactStore) -> None:
    assert store.create("k", b"first")
    assert not store.create("k", b"second")
    assert store.get_bytes("k") == b"first"
    store.put_bytes("k", b"replaced")
    assert not store.create("k", b"third")
    assert store.get_bytes("k") == b"replaced"


def test_of_concurrent_creates_one_succeeds(store: ArtifactStore) -> None:
    """A store without atomic creates says so; its object is complete even then."""
    racers = 8
    atomic = store.atomic_create
    barrier = threading.Barrier(racers)

    def create(racer: int) -> bool:
        barrier.wait()
        return store.create("k", b"%d" % racer * 1000)

    with ThreadPoolExecutor(racers) as pool:
        won = [racer for racer, winner in enumerate(pool.map(create, range(racers))) if winner]
    assert won
    assert len(won) == 1 or not atomic
    assert store.get_bytes("k") in [b"%d" % racer * 1000 for racer in won]


def test_a_reader_never_sees_a_part(store: ArtifactStore, tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(path.name.encode() * 700_000)
    whole = {path.read_bytes() for path in paths}
    stop = threading.Event()
    store.put_file("k", paths[0])

    def read() -> set[bytes]:
        seen = {store.get_bytes("k")}
        while not stop.is_set():
            seen.add(store.get_bytes("k"))
        return seen

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        try:
            for turn in range(12):
                store.put_file("k", paths[turn % 2])
        finally:
            stop.set()
        assert reader.result() <= whole


def test_failed_download_leaves_the_old_file(store: ArtifactStore, tmp_path: Path) -> None:
    target = tmp_path / "folder/target"
    target.parent.mkdir()
    target.write_bytes(b"old")
    with pytest.raises(ObjectNotFound):
        store.get_file("missing", target)
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
