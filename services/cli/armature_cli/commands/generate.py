"""``armature generate``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from armature_cli.commands.session import JsonOption, pairs, platform, show, usage_error


def generate(
    model: Annotated[str, typer.Argument(help="A profile, or profile@alias.")],
    prompt: Annotated[str, typer.Argument(help="The prompt, or - to read standard input.")],
    pref: Annotated[list[str] | None, typer.Option(help="Weights by attribute: empathy=2,truthfulness=1.")] = None,
    weight: Annotated[float | None, typer.Option(help="Guidance weight; 0 is the safe base.")] = None,
    delta: Annotated[float | None, typer.Option(help="Width of the safe set in nats.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Maximum number of tokens.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the sampling.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Continue the prompt as plain text instead of a chat.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Send a prompt to a served profile and print the answer as it is generated."""
    content = sys.stdin.read() if prompt == "-" else prompt
    options: dict[str, Any] = {
        "preference": _weights(pref) if pref else None,
        "guidance_weight": weight,
        "safe_set_delta": delta,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    given = {name: value for name, value in options.items() if value is not None}
    messages = [{"role": "user", "content": content}]
    with platform() as client:
        if as_json and text:
            show(client.completions.create(model=model, prompt=content, **given), as_json)
        elif as_json:
            show(client.chat.completions.create(model=model, messages=messages, **given), as_json)
        elif text:
            for piece in client.completions.stream(model=model, prompt=content, **given):
                _write(piece.choices[0].text if piece.choices else None)
        else:
            for chunk in client.chat.completions.stream(model=model, messages=messages, **given):
                _write(chunk.choices[0].delta.content if chunk.choices else None)
    if not as_json:
        _write("\n")


def _weights(texts: list[str]) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in pairs(texts, "--pref").items()}
    except ValueError as error:
        raise usage_error(f"--pref takes numbers: {error}") from None


def _write(text: str | None) -> None:
    sys.stdout.write(text or "")
    sys.stdout.flush()
