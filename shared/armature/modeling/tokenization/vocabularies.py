"""Whether two models speak the same tokens: equal sizes do not say so (trap T3)."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from armature.contracts.base import digest
from armature.errors import TokenizerMismatch


def digest_vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """What :func:`require_same_tokens` compares, as one digest."""
    return digest({"tokens": tokenizer.get_vocab(), "end": tokenizer.eos_token_id})


def require_same_tokens(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase, param: str) -> None:
    """Refuse tokenizers that give one id two meanings. Chat templates may differ: each model has prompts of its own.

    Raises:
        TokenizerMismatch: Naming the first token that differs, or the end of sequence.
    """
    ours, theirs = first.get_vocab(), second.get_vocab()
    if different := sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)):
        token = different[0]
        raise TokenizerMismatch(f"token {token!r} is {ours.get(token)} and {theirs.get(token)}", param=param)
    if first.eos_token_id != second.eos_token_id:
        message = f"the end of sequence is {first.eos_token_id} and {second.eos_token_id}"
        raise TokenizerMismatch(message, param=param)
