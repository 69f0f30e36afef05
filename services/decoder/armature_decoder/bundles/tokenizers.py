"""Tokenizers in memory: one for all bundles whose checkpoints have the same files.

One is freed with the last of these bundles. Loading one is a single call that holds the GIL, longer for a larger
vocabulary, and no throttle divides it.
"""

from __future__ import annotations

import threading
from weakref import WeakValueDictionary

from transformers import PreTrainedTokenizerBase

from armature.contracts.artifacts import CheckpointMetadata
from armature.errors import TokenizerMismatch
from armature.modeling.checkpoints.folder import digest_tokenizer
from armature.modeling.checkpoints.loading import load_tokenizer
from armature_decoder.bundles.disk import DiskArtifact


class SharedTokenizers:
    """Tokenizers by the files they are made of.

    Bundles encode with one at the same time: :mod:`armature.modeling.tokenization.prompts` takes the tokenizer's lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokenizers: WeakValueDictionary[object, PreTrainedTokenizerBase] = WeakValueDictionary()

    def load(self, checkpoint: DiskArtifact, metadata: CheckpointMetadata) -> PreTrainedTokenizerBase:
        """Return the checkpoint's tokenizer, loaded and checked against ``metadata`` unless it is in memory.

        Raises:
            InvalidCheckpoint: It can not be read.
            TokenizerMismatch: It is not the one in the metadata.
        """
        files = {file.path: file.sha256 for file in checkpoint.manifest.files if not file.path.endswith(".safetensors")}
        key = (metadata.tokenizer_digest, frozenset(files.items()))
        with self._lock:
            if (tokenizer := self._tokenizers.get(key)) is None:
                tokenizer = self._tokenizers[key] = _load(checkpoint, metadata)
            return tokenizer


def _load(checkpoint: DiskArtifact, metadata: CheckpointMetadata) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(checkpoint.folder)
    if digest_tokenizer(tokenizer) != metadata.tokenizer_digest:
        raise TokenizerMismatch("a model's tokenizer is not the one in its manifest")
    return tokenizer
