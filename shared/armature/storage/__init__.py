"""The artifact store: the port in ``base``, one module per implementation, artifacts on top."""

from armature.settings import StoreSettings
from armature.storage.base import ArtifactStore


def open_store(settings: StoreSettings) -> ArtifactStore:
    """Open the store that ``settings`` name. It connects at its first use."""
    return _OPENERS[settings.kind](settings)


def _open_local(settings: StoreSettings) -> ArtifactStore:
    from armature.storage.local import LocalArtifactStore

    return LocalArtifactStore(settings.path)


def _open_s3(settings: StoreSettings) -> ArtifactStore:
    from armature.storage.minio import MinioArtifactStore

    return MinioArtifactStore(settings)


_OPENERS = {"local": _open_local, "s3": _open_s3}
