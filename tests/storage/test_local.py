"""What only a store in a directory can get wrong."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from armature.errors import StorageUnavailable
from armature.settings import StoreSettings
from armature.storage import open_store
from armature.storage.local import LocalArtifactStore


def test_opening_touches_nothing(tmp_path: Path) -> None:
    store = open_store(StoreSettings(path=tmp_path / "data/store"))
    assert list(tmp_path.iterdir()) == []
    store.put_bytes("a/b", b"1")
    assert (tmp_path / "data/store/objects/a/b").read_bytes() == b"1"


def test_a_root_that_is_no_directory_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    store = LocalArtifactStore(tmp_path / "store")
    for call in (
        lambda: store.get_bytes("k"),
        lambda: store.put_bytes("k", b""),
        lambda: store.create("k", b""),
        lambda: store.head("k"),
        lambda: store.delete("k"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(StorageUnavailable):
            call()


def test_an_object_is_no_folder(tmp_path: Path) -> None:
    store = LocalArtifactStore(tmp_path)
    store.put_bytes("a", b"1")
    with pytest.raises(StorageUnavailable):
        store.put_bytes("a/b", b"2")
    assert store.get_bytes("a") == b"1"
    assert store.head("a/b") is None


@pytest.mark.process
def test_a_killed_writer_leaves_no_object_and_its_draft_goes_away(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys\n"
        "from armature.storage.local import LocalArtifactStore\n"
        "store = LocalArtifactStore(pathlib.Path(sys.argv[1]))\n"
        "with store._writing(store._path('k')) as file:\n"
        "    file.write(b'half')\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    (draft,) = (tmp_path / "incoming").iterdir()
    store = LocalArtifactStore(tmp_path)
    assert store.head("k") is None
    assert list(store.list("")) == []
    assert draft.exists()  # it could be another process's, at work
    yesterday = time.time() - 25 * 3600
    os.utime(draft, (yesterday, yesterday))
    assert list(LocalArtifactStore(tmp_path).list("")) == []
    assert not draft.exists()


def test_writes_in_one_tick_of_the_clock_differ_in_etag(tmp_path: Path) -> None:
    store = LocalArtifactStore(tmp_path)
    etags = set()
    for number in range(50):
        store.put_bytes("k", b"%02d" % number)
        info = store.head("k")
        assert info is not None
        etags.add(info.etag)
    assert len(etags) == 50
