"""Comparison of vocabularies: two of equal size can still give one token different ids.

Tokens that one side lacks are no contradiction: an added pad token makes no id mean two things.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from armature.contracts.base import digest
from armature.errors import TokenizerMismatch


def digest_tokens(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest the tokens that models of one vocabulary share, and the end of sequence.

    Added tokens are left out: models that share a vocabulary differ in them.
    """
    added = tokenizer.added_tokens_decoder  # the library builds it anew at each access
    tokens = {token: id for token, id in tokenizer.get_vocab().items() if id not in added}
    return digest({"tokens": tokens, "end": tokenizer.eos_token_id})


def require_same_tokens(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase, param: str) -> None:
    """Refuse tokenizers in which a token has two ids, or an id two tokens. Chat templates may differ.

    Raises:
        TokenizerMismatch: The message names the first token that differs, or the end of sequence.
    """
    ids, other_ids = first.get_vocab(), second.get_vocab()
    if different := sorted(token for token in ids.keys() & other_ids.keys() if ids[token] != other_ids[token]):
        token = different[0]
        raise TokenizerMismatch(f"token {token!r} is {ids[token]} and {other_ids[token]}", param=param)
    tokens, other_tokens = ({id: token for token, id in one.items()} for one in (ids, other_ids))
    if different_ids := sorted(id for id in tokens.keys() & other_tokens.keys() if tokens[id] != other_tokens[id]):
        id = different_ids[0]
        raise TokenizerMismatch(f"token {id} is {tokens[id]!r} and {other_tokens[id]!r}", param=param)
    if first.eos_token_id != second.eos_token_id:
        message = f"the end of sequence is {first.eos_token_id} and {second.eos_token_id}"
        raise TokenizerMismatch(message, param=param)
