"""The dense weights in memory: each loaded once, shared by the bundles that sit on it, gone with the last of them.

They are known by their content, not by their name or owner: who may ask for a model is decided elsewhere.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from armature.contracts.base import digest
from armature.inference.shared_weights import SharedBase
from armature_decoder.bundles.disk import DiskArtifact


@dataclass(frozen=True)
class BaseParts:
    """What dense weights are made of: a checkpoint minus a harm vector at a scale."""

    checkpoint: DiskArtifact
    harm_vector: DiskArtifact | None = None
    harm_scale: float = 0.0

    @property
    def key(self) -> str:
        """The same for the same verified bytes, whoever brought them."""
        artifacts = [part for part in (self.checkpoint, self.harm_vector) if part is not None]
        files = [{file.path: file.sha256 for file in artifact.manifest.files} for artifact in artifacts]
        return digest({"files": files, "scale": self.harm_scale if self.harm_vector else 0.0})


@dataclass(eq=False)
class _Resident:
    """Room that is set aside for one base, who holds it, and the base once it is loaded."""

    bytes: int
    owners: set[object] = field(default_factory=set)
    base: SharedBase | None = None
    loading: threading.Lock = field(default_factory=threading.Lock)


class BaseShelf:
    """Bases by :attr:`BaseParts.key`. A base stays while somebody owns a share of it; its bytes count once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._residents: dict[str, _Resident] = {}

    @property
    def bytes(self) -> int:
        """What all of them take, those included whose room is set aside while they are being loaded."""
        with self._lock:
            return sum(resident.bytes for resident in self._residents.values())

    def missing(self, sizes: Mapping[str, int]) -> int:
        """Bytes of those that are not there."""
        with self._lock:
            return sum(size for key, size in sizes.items() if key not in self._residents)

    def claim(self, owner: object, sizes: Mapping[str, int], *, new: bool) -> None:
        """Make ``owner`` one of those who hold the bases; those that are not there only if ``new``."""
        with self._lock:
            for key, size in sizes.items():
                if new or key in self._residents:
                    self._residents.setdefault(key, _Resident(size)).owners.add(owner)

    def release(self, owner: object) -> None:
        """Give the owner's shares back. Returns when what nobody holds is freed; until then its bytes count."""
        with self._lock:
            held = [resident for resident in self._residents.values() if owner in resident.owners]
            for resident in held:
                resident.owners.remove(owner)
                if not resident.owners:
                    resident.base = None
        if held:
            gc.collect()  # module trees have cycles
            with self._lock:
                self._residents = {key: one for key, one in self._residents.items() if one.owners}

    def load(self, key: str, make: Callable[[], SharedBase]) -> SharedBase:
        """A claimed base, made by whoever comes first; the others wait. If making it fails, the next one tries."""
        resident = self._residents[key]
        with resident.loading:
            if resident.base is None:
                resident.base = make()
            return resident.base
