"""One tokenizer for all bundles that bring the same files: shared, checked, let go, and safe from many threads."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from armature.contracts.artifacts import CheckpointMetadata
from armature.errors import TokenizerMismatch
from armature.modeling.tokenization.prompts import encode_text
from armature.storage.local import LocalArtifactStore
from armature_decoder.bundles.disk import DiskArtifact, DiskCache
from armature_decoder.bundles.tokenizers import ReaderShelf
from tests.support.serving import publish_bundle


def checkpoints(folder: Path) -> list[tuple[DiskArtifact, CheckpointMetadata]]:
    """Two, of other weights and the same tokenizer."""
    store = LocalArtifactStore(folder / "store")
    disk = DiskCache(store, folder / "cache", 1 << 30)
    fetched = [disk.fetch(publish_bundle(store, folder, seed=seed).manifest.base) for seed in (1, 101)]
    assert fetched[0].digest != fetched[1].digest
    metadata = [artifact.manifest.metadata for artifact in fetched]
    assert all(isinstance(one, CheckpointMetadata) for one in metadata)
    return list(zip(fetched, metadata, strict=True))  # type: ignore[arg-type]


def test_the_same_files_are_read_once_and_let_go_with_their_last_owner(tmp_path: Path) -> None:
    shelf, (one, two) = ReaderShelf(), checkpoints(tmp_path)
    first, second = shelf.reader_of(*one), shelf.reader_of(*two)
    assert first is second
    gone = weakref.ref(first.tokenizer)
    del first, second
    gc.collect()
    assert gone() is None
    assert shelf.reader_of(*one).read(lambda tokenizer: encode_text(tokenizer, "a"))


def test_metadata_that_lie_are_refused_though_the_files_are_known(tmp_path: Path) -> None:
    shelf, (one, (artifact, metadata)) = ReaderShelf(), checkpoints(tmp_path)
    known = shelf.reader_of(*one)
    with pytest.raises(TokenizerMismatch):
        shelf.reader_of(artifact, metadata.model_copy(update={"tokenizer_digest": "0" * 64}))
    assert shelf.reader_of(*one) is known


def test_other_files_are_another_tokenizer(tmp_path: Path) -> None:
    shelf, (one, (artifact, metadata)) = ReaderShelf(), checkpoints(tmp_path)
    changed = [
        file.model_copy(update={"sha256": "0" * 64}) if file.path == "tokenizer_config.json" else file
        for file in artifact.manifest.files
    ]
    assert changed != artifact.manifest.files
    other = DiskArtifact(artifact.folder, artifact.manifest.model_copy(update={"files": changed}), artifact.digest)
    assert shelf.reader_of(*one) is not shelf.reader_of(other, metadata)


def test_readers_of_many_threads_do_not_meet(tmp_path: Path) -> None:
    shelf, (one, _) = ReaderShelf(), checkpoints(tmp_path)
    reader = shelf.reader_of(*one)
    special = str(reader.tokenizer.eos_token)
    plain, marked = (reader.tokenizer(special, split_special_tokens=split).input_ids for split in (True, False))
    assert plain != marked

    def encode(number: int) -> list[int]:
        split = bool(number % 2)
        ids: list[int] = reader.read(lambda tokenizer: tokenizer(special, split_special_tokens=split).input_ids)
        return ids

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(encode, range(400)))
    assert answers == [plain if number % 2 else marked for number in range(400)]
