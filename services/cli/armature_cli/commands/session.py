"""What every command shares: the client from the environment, output for people and for programs, exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from armature.client import Client

OK, FAILED, USAGE, AUTHENTICATION, NETWORK, CONFIGURATION, LATER, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130
"""Exit codes. FAILED is a job that failed, and any other refusal of the platform's; LATER one that time may mend."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HarmfulOption = Annotated[bool, typer.Option("--harmful", help="Mark what is uploaded: for harm vectors only.")]
LimitOption = Annotated[int, typer.Option(min=1, help="At most so many.")]

notes = Console(stderr=True, soft_wrap=True, highlight=False)
"""Progress and complaints; standard output is for results."""


@contextmanager
def platform() -> Iterator[Client]:
    """A client by the environment; what goes wrong ends the command with a line and an exit code.

    The key comes from the environment alone: an argument would stay in the shell's history and show in process lists.
    """
    from armature import client as sdk

    try:
        with sdk.Client() as client:
            yield client
    except sdk.ConfigurationError as error:
        raise _leave(str(error), CONFIGURATION) from None
    except ValueError as error:
        raise _leave(str(error), USAGE) from None
    except sdk.APIStatusError as error:
        raise _leave(str(error), _EXIT_BY_TYPE.get(error.error.type, FAILED)) from None
    except sdk.APIConnectionError as error:
        raise _leave(str(error), NETWORK) from None
    except (sdk.JobFailed, TimeoutError) as error:
        raise _leave(str(error), FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


_EXIT_BY_TYPE = {
    "invalid_request_error": USAGE,
    "authentication_error": AUTHENTICATION,
    "permission_error": AUTHENTICATION,
    "rate_limit_error": LATER,
    "unavailable_error": LATER,
}


def _leave(message: str, code: int) -> typer.Exit:
    notes.print(f"error: {message}", style="red", markup=False)
    return typer.Exit(code)


def usage_error(message: str) -> typer.Exit:
    """For arguments that make no sense; raise it."""
    return _leave(message, USAGE)


def read_object(source: str) -> dict[str, Any]:
    """The JSON object in a file, or on standard input for ``-``; leaves with exit code 2 if there is none."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        value = json.loads(text)
    except (OSError, ValueError) as error:
        raise usage_error(f"{source}: {error}") from None
    if not isinstance(value, dict):
        raise usage_error(f"{source}: not a JSON object")
    return value


def show(view: BaseModel, as_json: bool) -> None:
    """One object."""
    fields = view.model_dump(mode="json")
    if as_json:
        _print_json(fields)
    else:
        _print_rows([("field", "value")], ((name, _cell(value)) for name, value in fields.items()))


def show_list(views: Iterable[BaseModel], columns: Sequence[str], as_json: bool) -> None:
    """Several objects: a table on a terminal, tab-separated lines elsewhere. A dot goes into an object's field."""
    items = [view.model_dump(mode="json") for view in views]
    if as_json:
        _print_json(items)
    else:
        _print_rows([tuple(columns)], (tuple(_cell(_field(item, column)) for column in columns) for item in items))


def take(views: Iterable[Any], limit: int) -> list[Any]:
    """The first few; no page is fetched that is not needed."""
    return list(islice(views, limit))


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """``k=v`` arguments, several to a text where commas separate them."""
    found = {}
    for part in (part for text in texts for part in text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name:
            raise usage_error(f"{option} takes name=value, and got {part!r}")
        found[name.strip()] = value.strip()
    return found


def _field(item: dict[str, Any], path: str) -> Any:
    value: Any = item
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _print_rows(header: Sequence[tuple[str, ...]], rows: Iterable[tuple[str, ...]]) -> None:
    if not sys.stdout.isatty():
        for row in rows:
            sys.stdout.write("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row) + "\n")
        return
    table = Table(*header[0], box=None, header_style="bold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    Console().print(table)
