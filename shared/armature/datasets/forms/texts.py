"""Texts and dialogues as files spell them, brought to one shape: roles, parts of content, transcripts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo

from armature.contracts.datasets import Answer, Dialogue, Message, Prompt, TextOrDialogue
from armature.datasets.forms.notes import Notes

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "User", "Human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "chatbot", "model", "bing", "chatgpt", "Assistant"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_call", "function_response", "observation", "ipython"), "tool"),
}
"""The roles of files, and what they mean here; any other is refused. Messages of tools are left out."""
_TURNS = ("user", "assistant")


def plain_messages(value: Any, info: ValidationInfo) -> Any:
    """Bring a list of messages to ``[{role, content}]``; anything else is returned unchanged.

    Accepts ``from`` and ``value``, pairs of ``input`` and ``output``, texts in turn, content in parts of text, and one
    message alone. Messages and calls of tools are left out and counted in the validation's context, a :class:`Notes`.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    notes: Notes = info.context if info.context is not None else Notes()
    messages = []
    for message in _spelt_out(value):
        if isinstance(message, dict) and _is_of_a_tool(message):
            notes["tool_messages"] += 1
        else:
            messages.append(message)
    return messages


def _spelt_out(messages: Iterable[Any]) -> Iterator[Any]:
    for number, message in enumerate(messages):
        if isinstance(message, str):
            yield {"role": _TURNS[number % 2], "content": message}
        elif isinstance(message, dict) and message.keys() >= {"input", "output"}:
            yield {"role": "user", "content": message["input"]}
            yield {"role": "assistant", "content": message["output"]}
        elif isinstance(message, dict):
            role = message.get("role", message.get("from"))
            known = ROLES.get(role, role) if isinstance(role, str) else role
            content = message.get("content", message.get("value"))
            tools = {"tool_calls": message["tool_calls"]} if message.get("tool_calls") else {}
            named = {"role": known, "content": _joined(content), **tools}
            yield {name: part for name, part in named.items() if part is not None}
        else:
            yield message


def _joined(content: Any) -> Any:
    """Join the parts of a content that is all text."""
    if isinstance(content, list) and content:
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    return content


def _is_of_a_tool(message: dict[str, Any]) -> bool:
    return message.get("role") == "tool" or ("tool_calls" in message and not message.get("content"))


FilePrompt = Annotated[Prompt, BeforeValidator(plain_messages)]
FileText = Annotated[TextOrDialogue, BeforeValidator(plain_messages)]
FileAnswer = Annotated[Answer, BeforeValidator(plain_messages)]
FileDialogue = Annotated[Dialogue, BeforeValidator(plain_messages)]


@dataclass(frozen=True)
class _Marks:
    """The marks of a kind of transcript: what it begins with, and a turn's mark with its role."""

    start: str
    turn: re.Pattern[str]


_TRANSCRIPTS = (
    _Marks("Human:", re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")),
    _Marks("### Human:", re.compile(r"\s*### (Human|Assistant):")),
    _Marks("<extra_id_1>User", re.compile(r"\s*<extra_id_1>(User|Assistant)\n?")),
)
"""hh-rlhf and its like; Guanaco; NeMo."""


def turns_of(text: str) -> list[tuple[str, str]] | None:
    """Split a transcript into (role, text) turns, the texts stripped; None for any other text.

    Turns in a row of one role are one, and turns without text count for nothing; the last turn stays as it is.
    """
    if "<extra_id_1>" in text and not text.startswith("<extra_id_1>"):
        text = f"<extra_id_1>User\n{text}"  # HelpSteer2 leaves out the first mark
    marks = next((marks for marks in _TRANSCRIPTS if text.lstrip().startswith(marks.start)), None)
    if marks is None:
        return None
    parts = marks.turn.split(text)[1:]
    spoken = [(ROLES[role], words.strip()) for role, words in zip(parts[::2], parts[1::2], strict=True)]
    turns: list[tuple[str, str]] = []
    for role, words in filter(lambda turn: turn[1], spoken[:-1]):
        if turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n\n{words}")
        else:
            turns.append((role, words))
    return turns + spoken[-1:]


def messages_of(turns: Iterable[tuple[str, str]]) -> tuple[Message, ...]:
    """Turn (role, text) turns into messages; an empty last one, which asks for the answer, is left out."""
    return tuple(Message(role=role, content=text) for role, text in turns if text)  # type: ignore[arg-type]


def prompt_of(prompt: Any, system: str | None = None) -> Any:
    """Build a prompt of a text, a transcript or a dialogue, behind a system message if there is one."""
    if isinstance(prompt, str) and (turns := turns_of(prompt)) is not None:
        prompt = messages_of(turns)
    if not system or (not isinstance(prompt, str) and prompt[0].role == "system"):
        return prompt
    dialogue = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
    return (Message(role="system", content=system), *dialogue)


def without_prompt(prompt: Any, *answers: str, notes: Notes) -> tuple[str, ...]:
    """Cut a text prompt off the beginning of its answers, if all of them begin with it and go on."""
    if not isinstance(prompt, str):
        return answers
    rests = tuple(answer.removeprefix(prompt) for answer in answers)
    is_cut = all(
        rest != answer and rest.strip() and (rest[0].isspace() or prompt[-1].isspace() or prompt.endswith(":"))
        for rest, answer in zip(rests, answers, strict=True)
    )
    if not is_cut:
        return answers
    notes["repeated_prompts"] += len(answers)
    return rests
