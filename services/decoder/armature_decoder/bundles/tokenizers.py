"""The tokenizers in memory: one for all bundles whose checkpoints bring the same files, gone with the last of them.

To load one is a single call that keeps the interpreter, the longer the larger its vocabulary; nothing divides it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import WeakValueDictionary

from transformers import PreTrainedTokenizerBase

from armature.contracts.artifacts import CheckpointMetadata
from armature.errors import TokenizerMismatch
from armature.modeling.checkpoints.folder import digest_tokenizer
from armature.modeling.checkpoints.loading import load_tokenizer
from armature_decoder.bundles.disk import DiskArtifact

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Reader:
    """A tokenizer that several bundles read their prompts with. Decoding needs no care, and goes past the reader."""

    tokenizer: PreTrainedTokenizerBase
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def read(self, encode: Callable[[PreTrainedTokenizerBase], Result]) -> Result:
        """Encode while nobody else does: the library keeps settings of a call, such as whether text may hold special
        tokens, in the tokenizer itself."""
        with self._reading:
            return encode(self.tokenizer)


class ReaderShelf:
    """Readers by the files that they are made of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers: WeakValueDictionary[object, Reader] = WeakValueDictionary()

    def reader_of(self, checkpoint: DiskArtifact, metadata: CheckpointMetadata) -> Reader:
        """The checkpoint's, checked against its metadata.

        Raises:
            InvalidCheckpoint: It can not be read.
            TokenizerMismatch: It is not the one in the metadata.
        """
        files = {file.path: file.sha256 for file in checkpoint.manifest.files if not file.path.endswith(".safetensors")}
        key = (metadata.tokenizer_digest, frozenset(files.items()))
        with self._lock:
            if (reader := self._readers.get(key)) is None:
                reader = self._readers[key] = Reader(self._load(checkpoint, metadata))
            return reader

    def _load(self, checkpoint: DiskArtifact, metadata: CheckpointMetadata) -> PreTrainedTokenizerBase:
        tokenizer = load_tokenizer(checkpoint.folder)
        if digest_tokenizer(tokenizer) != metadata.tokenizer_digest:
            raise TokenizerMismatch("a model's tokenizer is not the one in its manifest")
        return tokenizer
