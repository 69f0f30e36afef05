"""The poller of the serving snapshot, with a copy on disk.

The copy lets a decoder restart while the control plane is down.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from armature.contracts.serving import SNAPSHOT_KEY, ServingSnapshot
from armature.errors import StorageUnavailable
from armature.logging import get_logger
from armature.storage.base import ArtifactStore, ObjectNotFound
from armature.storage.files import replacing

_log = get_logger(__name__)


class SnapshotPoller:
    """Polls the snapshot's etag every ``interval`` seconds and passes a new snapshot to ``on_change``.

    A snapshot that can not be read or parsed, or is older than the current one, is ignored. ``on_tick`` is called
    after every poll in the background.
    """

    def __init__(
        self,
        store: ArtifactStore,
        last_known_good: Path,
        interval: float,
        on_change: Callable[[ServingSnapshot], None],
        on_tick: Callable[[], None],
    ) -> None:
        self._store = store
        self._path = last_known_good
        self._interval = interval
        self._on_change = on_change
        self._on_tick = on_tick
        self._etag: str | None = None
        self._current: ServingSnapshot | None = None
        self._store_answers = True
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshot-poller", daemon=True)

    def start(self) -> None:
        """Load the last known good snapshot, poll once, then keep polling in the background."""
        if self._path.is_file() and (snapshot := _parse(self._path.read_bytes(), str(self._path))) is not None:
            self._adopt(snapshot)
        self.poll()
        self._thread.start()

    def stop(self) -> None:
        """Stop polling; return when the thread has ended."""
        self._stopped.set()
        self._thread.join()

    def poll(self) -> None:
        """Poll once."""
        try:
            data = self._read_if_changed()
        except (StorageUnavailable, ObjectNotFound) as error:
            if self._store_answers:
                _log.warning("serving snapshot not readable; the last known good stays in use", reason=error.message)
            self._store_answers = False
            return
        self._store_answers = True
        if data is None or (snapshot := _parse(data, SNAPSHOT_KEY)) is None:
            return
        if self._is_older(snapshot):
            _log.warning("older serving snapshot ignored", revision=snapshot.revision)
            return
        with replacing(self._path) as file:
            file.write(data)
        self._adopt(snapshot)

    def _read_if_changed(self) -> bytes | None:
        info = self._store.head(SNAPSHOT_KEY)
        if info is None:
            raise ObjectNotFound("the store has no serving snapshot yet")
        if info.etag == self._etag:
            return None
        data = self._store.get_bytes(SNAPSHOT_KEY)
        self._etag = info.etag
        return data

    def _is_older(self, snapshot: ServingSnapshot) -> bool:
        current = self._current
        return (
            current is not None
            and current.installation == snapshot.installation
            and snapshot.revision < current.revision
        )

    def _adopt(self, snapshot: ServingSnapshot) -> None:
        self._current = snapshot
        self._on_change(snapshot)
        _log.info("serving snapshot adopted", revision=snapshot.revision, tenants=len(snapshot.tenants))

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self.poll()
                self._on_tick()
            except Exception as error:  # else the thread ends, and revoked keys go on working
                _log.error("serving snapshot poll failed", exc_info=error)


def _parse(data: bytes, source: str) -> ServingSnapshot | None:
    try:
        return ServingSnapshot.model_validate_json(data)
    except ValidationError as error:
        _log.error("serving snapshot not valid", source=source, problems=error.error_count())
        return None
