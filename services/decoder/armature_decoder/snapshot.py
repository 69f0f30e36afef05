"""The serving snapshot: polled from the store, and kept on disk so that a decoder outlives its control plane."""

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
    """Looks at the snapshot's etag every ``interval`` seconds and hands a new one to ``on_change``.

    What can not be read or parsed, or is older than what is served, changes nothing: the last known good stands.
    ``on_tick`` is called after every look.
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
        """Load the last known good, look once, then go on looking in the background."""
        if self._path.is_file() and (snapshot := _parse(self._path.read_bytes(), str(self._path))) is not None:
            self._adopt(snapshot)
        self.poll()
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stopped.set()
        self._thread.join()

    def poll(self) -> None:
        """Look once."""
        try:
            data = self._read_if_changed()
        except (StorageUnavailable, ObjectNotFound) as error:
            if self._store_answers:
                _log.warning("the serving snapshot can not be read; the last known good stands", reason=error.message)
            self._store_answers = False
            return
        self._store_answers = True
        if data is None or (snapshot := _parse(data, SNAPSHOT_KEY)) is None:
            return
        if self._goes_back(snapshot):
            _log.warning("an older serving snapshot is ignored", revision=snapshot.revision)
            return
        with replacing(self._path) as file:
            file.write(data)
        self._adopt(snapshot)

    def _read_if_changed(self) -> bytes | None:
        info = self._store.head(SNAPSHOT_KEY)
        if info is None:
            raise ObjectNotFound("there is no serving snapshot yet")
        if info.etag == self._etag:
            return None
        data = self._store.get_bytes(SNAPSHOT_KEY)
        self._etag = info.etag
        return data

    def _goes_back(self, snapshot: ServingSnapshot) -> bool:
        current = self._current
        return (
            current is not None
            and current.installation == snapshot.installation
            and snapshot.revision < current.revision
        )

    def _adopt(self, snapshot: ServingSnapshot) -> None:
        self._current = snapshot
        self._on_change(snapshot)
        _log.info("serving snapshot", revision=snapshot.revision, tenants=len(snapshot.tenants))

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self.poll()
                self._on_tick()
            except Exception as error:  # the poller must outlive whatever happens
                _log.error("snapshot poll failed", exc_info=error)


def _parse(data: bytes, source: str) -> ServingSnapshot | None:
    try:
        return ServingSnapshot.model_validate_json(data)
    except ValidationError as error:
        _log.error("a serving snapshot does not parse", source=source, problems=error.error_count())
        return None
