"""Dialogues as a chat template reads them: one name per role, and turns joined where it needs that."""

from __future__ import annotations

from collections.abc import Sequence

from armature.contracts.chat import ChatFormat
from armature.contracts.datasets import Prompt

Messages = list[dict[str, str]]

SYSTEM_ROLES = ("system", "developer")
"""OpenAI's newer name means the same; templates know the first one only."""
_SEPARATOR = "\n\n"


def as_messages(prompt: Prompt) -> Messages:
    """Convert a data set's prompt to a dialogue: text is one user message."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [message.model_dump() for message in prompt]


def shape_turns(messages: Sequence[dict[str, str]], chat: ChatFormat) -> Messages:
    """Return the messages as the template gets them: ``developer`` is ``system``, turns as ``chat`` says."""
    named = [{**one, "role": "system"} if one["role"] in SYSTEM_ROLES else dict(one) for one in messages]
    return _alternate(named) if chat.turns == "alternating" else named


def join(*texts: str) -> str:
    """Join texts of one message by an empty line."""
    return _SEPARATOR.join(texts)


def _alternate(messages: Messages) -> Messages:
    """Read system messages as the user's words, and join neighbours of one role."""
    turns: Messages = []
    for message in messages:
        role = "user" if message["role"] == "system" else message["role"]
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = join(turns[-1]["content"], message["content"])
        else:
            turns.append({"role": role, "content": message["content"]})
    return turns
