"""One tokenizer for all bundles with the same files: shared, checked, freed, and safe to use from many threads."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from armature.contracts.artifacts import CheckpointMetadata
from armature.errors import TokenizerMismatch
from armature.modeling.tokenization.prompts import encode_chat, encode_text
from armature.storage.local import LocalArtifactStore
from armature_decoder.bundles.disk import DiskArtifact, DiskCache
from armature_decoder.bundles.tokenizers import SharedTokenizers
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


@pytest.mark.slow
def test_a_tokenizer_is_loaded_once_and_freed_with_its_last_bundle(tmp_path: Path) -> None:
    shared, (one, two) = SharedTokenizers(), checkpoints(tmp_path)
    first, second = shared.load(*one), shared.load(*two)
    assert first is second
    gone = weakref.ref(first)
    assert encode_text(first, "a")
    del first, second
    gc.collect()
    assert gone() is None
    assert encode_text(shared.load(*one), "a")


def test_wrong_metadata_are_refused_though_the_files_are_known(tmp_path: Path) -> None:
    shared, (one, (artifact, metadata)) = SharedTokenizers(), checkpoints(tmp_path)
    known = shared.load(*one)
    with pytest.raises(TokenizerMismatch):
        shared.load(artifact, metadata.model_copy(update={"tokenizer_digest": "0" * 64}))
    assert shared.load(*one) is known


def test_other_files_are_another_tokenizer(tmp_path: Path) -> None:
    shared, (one, (artifact, metadata)) = SharedTokenizers(), checkpoints(tmp_path)
    changed = [
        file.model_copy(update={"sha256": "0" * 64}) if file.path == "tokenizer_config.json" else file
        for file in artifact.manifest.files
    ]
    assert changed != artifact.manifest.files
    other = DiskArtifact(artifact.folder, artifact.manifest.model_copy(update={"files": changed}), artifact.digest)
    first, second = shared.load(*one), shared.load(other, metadata)
    assert first is not second


def test_threads_that_encode_with_one_tokenizer_do_not_disturb_each_other(tmp_path: Path) -> None:
    shared, (one, _) = SharedTokenizers(), checkpoints(tmp_path)
    tokenizer = shared.load(*one)
    special = str(tokenizer.eos_token)
    dialogue = [{"role": "user", "content": special}]  # the template adds special tokens, the text must not
    alone = [encode_text(tokenizer, special), encode_chat(tokenizer, dialogue)]
    assert tokenizer.eos_token_id not in alone[0]

    def encode(number: int) -> list[int]:
        return encode_chat(tokenizer, dialogue) if number % 2 else encode_text(tokenizer, special)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(encode, range(400)))
    assert answers == [alone[number % 2] for number in range(400)]
