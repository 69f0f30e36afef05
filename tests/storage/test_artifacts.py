"""Artifacts are published whole, fetched verified, and swept only when nothing refers to them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from armature.contracts.artifacts import ArtifactManifest, ArtifactRef, Parent, Producer, ReportMetadata
from armature.errors import ArtifactCorrupt, InvalidRequest
from armature.storage.artifacts import (
    blob_key,
    fetch_artifact,
    manifest_key,
    publish_folder,
    put_blob,
    read_manifest,
    sweep_orphans,
)
from armature.storage.base import ArtifactStore, ObjectNotFound
from armature.storage.memory import MemoryArtifactStore

TENANT = "ten_1"
FILES = {"config.json": b"{}", "weights/model-00001.safetensors": b"\0" * 5000, "empty": b"", "copy.json": b"{}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "source"


def publish(store: ArtifactStore, folder: Path, tenant: str = TENANT) -> tuple[ArtifactManifest, ArtifactRef]:
    return publish_folder(
        store,
        tenant,
        folder,
        metadata=ReportMetadata(subject={"what": "test"}, metrics={}),
        parents=[Parent(role="base", digest="0" * 64)],
        producer=Producer(kind="evaluation.run", spec={"seed": 1}, version="0"),
    )


def test_published_is_what_is_fetched(store: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    manifest, ref = publish(store, folder)
    assert (manifest.kind, ref.digest) == ("report", manifest.digest())
    assert ref.manifest_key == f"tenants/{TENANT}/artifacts/{ref.digest}.json"
    assert fetch_artifact(store, ref, tmp_path / "cache/new") == manifest == read_manifest(store, ref)
    fetched = tmp_path / "cache/new"
    assert {p.relative_to(fetched).as_posix(): p.read_bytes() for p in fetched.rglob("*") if p.is_file()} == FILES
    assert list((tmp_path / "cache").iterdir()) == [fetched]


def test_publishing_again_gives_the_same_and_uploads_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryArtifactStore()
    first = publish(store, folder)
    keys = [info.key for info in store.list("")]
    assert len(keys) == len(set(FILES.values())) + 1  # equal files are one blob
    monkeypatch.setattr(store, "put_file", lambda key, path: pytest.fail(f"{key} was uploaded again"))
    assert publish(store, folder) == first
    assert [info.key for info in store.list("")] == keys


def test_tenants_share_no_bytes(folder: Path, tmp_path: Path) -> None:
    store = MemoryArtifactStore()
    _, ref = publish(store, folder)
    _, other = publish(store, folder, "ten_2")
    assert other.digest == ref.digest
    assert all(info.key.startswith(("tenants/ten_1/", "tenants/ten_2/")) for info in store.list(""))
    for info in list(store.list("tenants/ten_2/")):
        store.delete(info.key)
    fetch_artifact(store, ref, tmp_path / "new")
    with pytest.raises(ObjectNotFound):
        fetch_artifact(store, other, tmp_path / "newer")


class Crash(Exception):
    pass


class CrashingStore(MemoryArtifactStore):
    """A store that fails after a number of writes."""

    def __init__(self, writes_left: int) -> None:
        super().__init__()
        self.writes_left = writes_left

    def put_file(self, key: str, path: Path) -> None:
        self._count_down()
        super().put_file(key, path)

    def create(self, key: str, data: bytes) -> bool:
        self._count_down()
        return super().create(key, data)

    def _count_down(self) -> None:
        if self.writes_left == 0:
            raise Crash
        self.writes_left -= 1


@pytest.mark.parametrize("writes", range(len(set(FILES.values())) + 1))
def test_a_crash_shows_no_manifest_and_a_rerun_completes_it(folder: Path, tmp_path: Path, writes: int) -> None:
    store = CrashingStore(writes)
    with pytest.raises(Crash):
        publish(store, folder)
    assert len(list(store.list(f"tenants/{TENANT}/blobs/"))) == writes
    assert list(store.list(f"tenants/{TENANT}/artifacts/")) == []
    store.writes_left = len(set(FILES.values())) + 1 - writes
    _, ref = publish(store, folder)
    fetch_artifact(store, ref, tmp_path / "new")


CORRUPTIONS: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "bit flip": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "emptied": lambda data: b"",
}


@pytest.mark.parametrize("what", ["blob", "manifest"])
@pytest.mark.parametrize("corruption", CORRUPTIONS.values(), ids=CORRUPTIONS)
def test_damage_is_found_and_nothing_appears(
    store: ArtifactStore, folder: Path, tmp_path: Path, corruption: Callable[[bytes], bytes], what: str
) -> None:
    manifest, ref = publish(store, folder)
    largest = max(manifest.files, key=lambda file: file.size)
    key = blob_key(TENANT, largest.sha256) if what == "blob" else ref.manifest_key
    store.put_bytes(key, corruption(store.get_bytes(key)))
    with pytest.raises(ArtifactCorrupt):
        fetch_artifact(store, ref, tmp_path / "cache/new")
    assert list(tmp_path.glob("cache/*")) == []


def test_a_missing_blob_is_damage_and_a_missing_manifest_is_not_found(
    store: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    manifest, ref = publish(store, folder)
    store.delete(blob_key(TENANT, manifest.files[0].sha256))
    with pytest.raises(ArtifactCorrupt, match="missing"):
        fetch_artifact(store, ref, tmp_path / "new")
    with pytest.raises(ObjectNotFound):
        fetch_artifact(store, ArtifactRef(digest="1" * 64, manifest_key=manifest_key(TENANT, "1" * 64)), tmp_path / "n")
    assert not (tmp_path / "new").exists()


def test_a_damaged_manifest_is_not_published_over(folder: Path) -> None:
    store = MemoryArtifactStore()
    _, ref = publish(store, folder)
    store.put_bytes(ref.manifest_key, b"{}")
    with pytest.raises(ArtifactCorrupt):
        publish(store, folder)


@pytest.mark.parametrize("key", ["tenants/ten_1/artifacts/other.json", "tenants/../x.json", "manifest", ""])
def test_a_reference_to_elsewhere_is_refused(folder: Path, tmp_path: Path, key: str) -> None:
    store = MemoryArtifactStore()
    _, ref = publish(store, folder)
    with pytest.raises((ArtifactCorrupt, InvalidRequest, ObjectNotFound)):
        fetch_artifact(store, ArtifactRef(digest=ref.digest, manifest_key=key), tmp_path / "new")
    store.put_bytes("elsewhere.json", store.get_bytes(ref.manifest_key))
    with pytest.raises(ArtifactCorrupt):
        fetch_artifact(store, ArtifactRef(digest=ref.digest, manifest_key="elsewhere.json"), tmp_path / "new")


def test_fetching_into_a_folder_that_is_there_changes_nothing(folder: Path, tmp_path: Path) -> None:
    store = MemoryArtifactStore()
    _, ref = publish(store, folder)
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError):
        fetch_artifact(store, ref, tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []


def test_links_do_not_leave_the_folder(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (folder / "link").symlink_to(secret)
    store = MemoryArtifactStore()
    with pytest.raises(InvalidRequest, match="link"):
        publish(store, folder)
    assert list(store.list("")) == []


def test_an_empty_folder_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        publish(MemoryArtifactStore(), tmp_path)


def test_the_sweep_takes_old_orphans_only(store: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    manifest, ref = publish(store, folder)
    orphan = tmp_path / "orphan"
    orphan.write_bytes(b"orphan")
    lost = put_blob(store, TENANT, orphan)
    other = put_blob(store, "ten_2", orphan)
    referenced = {file.sha256 for file in manifest.files} | {ref.digest}

    assert sweep_orphans(store, TENANT, referenced) == 0
    assert sweep_orphans(store, TENANT, referenced, older_than_seconds=-5) == 1
    assert store.head(blob_key(TENANT, lost.sha256)) is None
    assert store.head(blob_key("ten_2", other.sha256)) is not None
    fetch_artifact(store, ref, tmp_path / "new")

    assert sweep_orphans(store, TENANT, set(), older_than_seconds=-5) == len(set(FILES.values())) + 1
    assert list(store.list(f"tenants/{TENANT}/")) == []


def test_the_sweep_spares_what_was_written_again_since_the_listing(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"data")

    class Refreshing(MemoryArtifactStore):
        def list(self, prefix: str):  # type: ignore[no-untyped-def]
            found = list(super().list(prefix))
            for info in found:
                self._stored[info.key] = type(self._stored[info.key])(b"data", info.modified_at + 7200)
            return iter(found)

    store = Refreshing()
    put_blob(store, TENANT, path)
    assert sweep_orphans(store, TENANT, set(), older_than_seconds=-3600) == 0


def test_an_old_blob_is_uploaded_again_not_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"data")
    store = MemoryArtifactStore()
    blob = put_blob(store, TENANT, path)
    born = store.head(blob_key(TENANT, blob.sha256))
    assert born is not None
    monkeypatch.setattr("time.time", lambda: born.modified_at + 13 * 3600)
    put_blob(store, TENANT, path)
    renewed = store.head(blob_key(TENANT, blob.sha256))
    assert renewed is not None
    assert renewed.modified_at > born.modified_at


def test_the_manifest_in_the_store_is_canonical(folder: Path) -> None:
    store = MemoryArtifactStore()
    manifest, ref = publish(store, folder)
    assert json.loads(store.get_bytes(ref.manifest_key)) == manifest.model_dump(mode="json")
