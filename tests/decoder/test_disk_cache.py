"""The decoder's disk: bounded by bytes, evicted least recently used first, and never what is claimed."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armature.contracts.artifacts import ArtifactRef, Producer, ReportMetadata
from armature.errors import ArtifactCorrupt, InsufficientMemory
from armature.storage.artifacts import blob_key, publish_folder, read_manifest
from armature.storage.local import LocalArtifactStore
from armature_decoder.bundles.disk import DiskCache

SIZE = 1000
METADATA = ReportMetadata(subject={}, metrics={})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalArtifactStore:
    return LocalArtifactStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def refs(store: LocalArtifactStore, tmp_path_factory: pytest.TempPathFactory) -> list[ArtifactRef]:
    """Six artifacts of a thousand bytes each."""
    return [publish(store, tmp_path_factory.mktemp("artifact"), letter) for letter in "abcdef"]


def publish(store: LocalArtifactStore, folder: Path, letter: str) -> ArtifactRef:
    (folder / "data.bin").write_bytes(letter.encode() * SIZE)
    producer = Producer(kind="test", spec={}, version="0")
    return publish_folder(store, "ten_a", folder, metadata=METADATA, parents=[], producer=producer)[1]


def held(root: Path) -> set[str]:
    return {path.stem for path in root.glob("*.json") if (root / path.stem / "data.bin").is_file()}


def use(disk: DiskCache, ref: ArtifactRef, at: int) -> None:
    """Fetch and release an artifact that was used at a given time."""
    disk.fetch(ref)
    os.utime(disk._manifest_path(ref.digest), (at, at))
    disk.release(ref)


def test_the_least_recently_used_unclaimed_artifact_is_evicted(
    store: LocalArtifactStore, refs: list[ArtifactRef], tmp_path: Path
) -> None:
    disk = DiskCache(store, tmp_path, 3 * SIZE)
    for at, ref in enumerate(refs[:3]):
        use(disk, ref, at)
    use(disk, refs[0], 10)
    disk.fetch(refs[1])
    use(disk, refs[3], 11)  # refs[1] was used least recently, and is claimed
    assert held(tmp_path) == {ref.digest for ref in (refs[0], refs[1], refs[3])}
    assert disk.used_bytes == 3 * SIZE


def test_where_all_is_claimed_a_download_is_refused(
    store: LocalArtifactStore, refs: list[ArtifactRef], tmp_path: Path
) -> None:
    disk = DiskCache(store, tmp_path, 2 * SIZE + SIZE // 2)
    for ref in refs[:2]:
        disk.fetch(ref)
    with pytest.raises(InsufficientMemory) as refused:
        disk.fetch(refs[2])
    assert refused.value.error_code == "insufficient_disk"
    assert held(tmp_path) == {ref.digest for ref in refs[:2]}
    assert disk.used_bytes == 2 * SIZE
    disk.release(refs[0])
    disk.fetch(refs[2])
    assert held(tmp_path) == {ref.digest for ref in refs[1:3]}


def test_a_restart_sweeps_unfinished_downloads(
    store: LocalArtifactStore, refs: list[ArtifactRef], tmp_path: Path
) -> None:
    disk = DiskCache(store, tmp_path, 3 * SIZE)
    for at, ref in enumerate(refs[:3]):
        use(disk, ref, at)
    disk._manifest_path(refs[1].digest).unlink()
    (tmp_path / ".draft").mkdir()
    (tmp_path / "x.partial").write_text("{")
    again = DiskCache(store, tmp_path, 2 * SIZE)
    assert again.used_bytes == 2 * SIZE
    assert len(list(tmp_path.iterdir())) == 4  # two folders and their manifests
    use(again, refs[4], 5)
    assert held(tmp_path) == {refs[2].digest, refs[4].digest}


def test_a_failed_download_gives_its_bytes_and_claim_back(
    store: LocalArtifactStore, tmp_path: Path, refs: list[ArtifactRef]
) -> None:
    (folder := tmp_path / "artifact").mkdir()
    broken = publish(store, folder, "z")
    key = blob_key("ten_a", read_manifest(store, broken).files[0].sha256)
    whole = store.get_bytes(key)
    store.put_bytes(key, whole[:-1] + b"!")
    disk = DiskCache(store, tmp_path / "disk", SIZE)
    with pytest.raises(ArtifactCorrupt):
        disk.fetch(broken)
    assert disk.used_bytes == 0
    use(disk, refs[0], 1)
    store.put_bytes(key, whole)
    use(disk, broken, 2)
    assert held(tmp_path / "disk") == {broken.digest}


def test_a_fetch_does_not_wait_while_the_copy_is_hashed(
    store: LocalArtifactStore, refs: list[ArtifactRef], tmp_path: Path
) -> None:
    disk = DiskCache(store, tmp_path, 3 * SIZE)
    data = disk.fetch(refs[0]).folder / "data.bin"
    content = data.read_bytes()
    data.unlink()
    os.mkfifo(data)  # reading it blocks until the test writes
    with ThreadPoolExecutor(1) as thread:
        checked = thread.submit(disk.recheck, refs[0])
        with data.open("wb") as pipe:  # returns once the other thread reads
            disk.fetch(refs[0])
            assert not checked.done()
            pipe.write(content)
        checked.result(30)
    data.unlink()
    data.write_bytes(content)
    assert held(tmp_path) == {refs[0].digest}
    data.write_bytes(b"rotten")
    disk.recheck(refs[0])
    assert held(tmp_path) == set()


def test_concurrent_downloads_keep_to_the_limit(
    store: LocalArtifactStore, refs: list[ArtifactRef], tmp_path: Path
) -> None:
    disk = DiskCache(store, tmp_path, 2 * SIZE)
    start = threading.Barrier(6)

    def fetch(ref: ArtifactRef) -> bool:
        start.wait()
        try:
            disk.fetch(ref)
        except InsufficientMemory:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(fetch, refs)) == [False] * 4 + [True] * 2
    assert len(held(tmp_path)) == 2


@given(st.lists(st.tuples(st.sampled_from(["fetch", "release", "restart"]), st.integers(0, 5)), max_size=30))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_limit_holds_and_claimed_artifacts_stay(
    store: LocalArtifactStore,
    refs: list[ArtifactRef],
    tmp_path_factory: pytest.TempPathFactory,
    moves: list[tuple[str, int]],
) -> None:
    root = tmp_path_factory.mktemp("disk")
    disk, claims = DiskCache(store, root, 3 * SIZE), list[int]()
    for move, index in moves:
        if move == "restart":
            disk, claims = DiskCache(store, root, 3 * SIZE), []
        elif move == "release" and index in claims:
            claims.remove(index)
            disk.release(refs[index])
        elif move == "fetch" and len({*claims, index}) <= 3:
            assert (disk.fetch(refs[index]).folder / "data.bin").stat().st_size == SIZE
            claims.append(index)
        assert {refs[claim].digest for claim in claims} <= held(root)
        assert disk.used_bytes == len(held(root)) * SIZE <= 3 * SIZE
