"""Comparison of vocabularies: two of equal size can still give one token different ids."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from armature.contracts.base import digest
from armature.errors import TokenizerMismatch


def digest_vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest what :func:`require_same_tokens` compares."""
    return digest({"tokens": tokenizer.get_vocab(), "end": tokenizer.eos_token_id})


def require_same_tokens(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase, param: str) -> None:
    """Refuse tokenizers with different token ids. Chat templates may differ: prompts are per model.

    Raises:
        TokenizerMismatch: The message names the first token that differs, or the end of sequence.
    """
    ids, other_ids = first.get_vocab(), second.get_vocab()
    if different := sorted(token for token in ids.keys() | other_ids.keys() if ids.get(token) != other_ids.get(token)):
        token = different[0]
        raise TokenizerMismatch(f"token {token!r} is {ids.get(token)} and {other_ids.get(token)}", param=param)
    if first.eos_token_id != second.eos_token_id:
        message = f"the end of sequence is {first.eos_token_id} and {second.eos_token_id}"
        raise TokenizerMismatch(message, param=param)
