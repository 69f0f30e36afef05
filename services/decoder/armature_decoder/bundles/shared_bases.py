"""Dense weights in memory, shared by the bundles that need them.

They are loaded once and freed with the last of these bundles. They are known by their content, not by name or tenant:
which tenant may use a model is decided in the profiles.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from armature.contracts.base import digest
from armature.inference.shared_weights import SharedWeights
from armature_decoder.bundles.disk import DiskArtifact


@dataclass(frozen=True)
class BaseParts:
    """The artifacts that dense weights are made of: a checkpoint minus a harm vector at a scale."""

    checkpoint: DiskArtifact
    harm_vector: DiskArtifact | None = None
    harm_scale: float = 0.0

    @property
    def key(self) -> str:
        """Digest of the verified files' bytes and the scale, equal for copies that different tenants brought."""
        artifacts = [part for part in (self.checkpoint, self.harm_vector) if part is not None]
        files = [{file.path: file.sha256 for file in artifact.manifest.files} for artifact in artifacts]
        return digest({"files": files, "scale": self.harm_scale if self.harm_vector else 0.0})


@dataclass(eq=False)
class _Resident:
    """A base's reserved bytes, its owners, and the weights once they are loaded."""

    bytes: int
    owners: set[object] = field(default_factory=set)
    base: SharedWeights | None = None
    loading: threading.Lock = field(default_factory=threading.Lock)


class SharedBases:
    """Bases by :attr:`BaseParts.key`. A base stays while it has an owner, and its bytes count once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._residents: dict[str, _Resident] = {}

    @property
    def bytes(self) -> int:
        """Bytes of all bases, loaded or still being loaded."""
        with self._lock:
            return sum(resident.bytes for resident in self._residents.values())

    def missing_bytes(self, sizes: Mapping[str, int]) -> int:
        """Add up the bytes of those bases that have no owner yet."""
        with self._lock:
            return sum(size for key, size in sizes.items() if key not in self._residents)

    def claim(self, owner: object, sizes: Mapping[str, int], *, new: bool) -> None:
        """Make ``owner`` an owner of the bases in ``sizes``; of those without an owner only if ``new``."""
        with self._lock:
            for key, size in sizes.items():
                if new or key in self._residents:
                    self._residents.setdefault(key, _Resident(size)).owners.add(owner)

    def release(self, owner: object) -> None:
        """Drop the owner; return once bases without owners are freed. Until then their bytes count."""
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

    def load(self, key: str, make: Callable[[], SharedWeights]) -> SharedWeights:
        """Return a claimed base; the first caller makes it while the others wait.

        If ``make`` fails, the next waiting caller tries again.
        """
        resident = self._residents[key]
        with resident.loading:
            if resident.base is None:
                resident.base = make()
            return resident.base
