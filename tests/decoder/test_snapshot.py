"""Polling, the last known good, and never going back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from armature.contracts.serving import SNAPSHOT_KEY, ServingSnapshot
from armature.errors import StorageUnavailable
from armature.storage.base import ObjectInfo
from armature.storage.memory import MemoryArtifactStore
from armature_decoder.snapshot import SnapshotPoller
from tests.support.processes import wait_until
from tests.support.serving import ServedInstallation


class Outage(MemoryArtifactStore):
    """A store that can be taken down."""

    down = False

    def head(self, key: str) -> ObjectInfo | None:
        if self.down:
            raise StorageUnavailable("no route to host")
        return super().head(key)


class Decoder:
    """A poller and what it adopted."""

    def __init__(self, store: MemoryArtifactStore, root: Path, interval: float = 60) -> None:
        self.adopted: list[ServingSnapshot] = []
        self.ticks = 0
        self.poller = SnapshotPoller(store, root / "snapshot.json", interval, self.adopted.append, self.tick)

    def tick(self) -> None:
        self.ticks += 1

    @property
    def revisions(self) -> list[int]:
        return [snapshot.revision for snapshot in self.adopted]


@pytest.fixture
def store() -> Outage:
    return Outage()


@pytest.fixture
def installation(store: Outage) -> ServedInstallation:
    installation = ServedInstallation(store)
    installation.add_tenant("acme")
    return installation


def test_each_new_snapshot_is_adopted_once(store: Outage, installation: ServedInstallation, tmp_path: Path) -> None:
    decoder = Decoder(store, tmp_path)
    decoder.poller.poll()
    assert decoder.revisions == []
    for _ in range(2):
        installation.publish()
        for _ in range(3):
            decoder.poller.poll()
    assert decoder.revisions == [1, 2]


def test_a_started_poller_polls_in_the_background(
    store: Outage, installation: ServedInstallation, tmp_path: Path
) -> None:
    decoder = Decoder(store, tmp_path, interval=0.01)
    decoder.poller.start()
    installation.publish()
    wait_until(lambda: decoder.revisions == [1] and decoder.ticks > 2)
    decoder.poller.stop()


def test_the_last_known_good_serves_while_the_store_is_down(
    store: Outage, installation: ServedInstallation, tmp_path: Path
) -> None:
    installation.publish()
    Decoder(store, tmp_path).poller.poll()
    store.down = True
    started = time.monotonic()
    restarted = Decoder(store, tmp_path)
    restarted.poller.start()
    assert restarted.revisions == [1]
    assert time.monotonic() - started < 5
    store.down = False
    installation.publish()
    restarted.poller.poll()
    assert restarted.revisions == [1, 2]
    restarted.poller.stop()


@pytest.mark.parametrize("rubbish", [b"{", b"{}", b'{"revision": 9}', b"\xff\xfe"])
def test_a_snapshot_that_does_not_parse_changes_nothing(
    store: Outage, installation: ServedInstallation, tmp_path: Path, rubbish: bytes
) -> None:
    installation.publish()
    decoder = Decoder(store, tmp_path)
    decoder.poller.poll()
    store.put_bytes(SNAPSHOT_KEY, rubbish)
    decoder.poller.poll()
    assert decoder.revisions == [1]
    (tmp_path / "snapshot.json").write_bytes(rubbish)
    restarted = Decoder(store, tmp_path / "elsewhere")
    restarted.poller.poll()
    assert restarted.revisions == []


def test_an_older_snapshot_of_an_installation_is_ignored(
    store: Outage, installation: ServedInstallation, tmp_path: Path
) -> None:
    old = installation.publish()
    installation.publish()
    decoder = Decoder(store, tmp_path)
    decoder.poller.poll()
    store.put_bytes(SNAPSHOT_KEY, old.model_dump_json().encode())
    decoder.poller.poll()
    assert decoder.revisions == [2]
    other = old.model_copy(update={"installation": "another"})
    store.put_bytes(SNAPSHOT_KEY, other.model_dump_json().encode())
    decoder.poller.poll()
    assert decoder.adopted[-1] == other


def test_the_copy_on_disk_is_private(store: Outage, installation: ServedInstallation, tmp_path: Path) -> None:
    installation.publish()
    Decoder(store, tmp_path).poller.poll()
    assert (tmp_path / "snapshot.json").stat().st_mode & 0o077 == 0
