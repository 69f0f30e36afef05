"""The client from the environment, output as a table or as JSON, and exit codes, for every command."""

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
"""Exit codes. FAILED: a job failed, or the platform refused for another reason; LATER: a later try may succeed."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HarmfulOption = Annotated[
    bool, typer.Option("--harmful", help="Flag the upload as harmful; needs a key with scope harmful:write.")
]
LimitOption = Annotated[int, typer.Option(min=1, help="Maximum number of items to list.")]

notes = Console(stderr=True, soft_wrap=True, highlight=False)
"""Console of progress and errors; standard output is for results."""


@contextmanager
def platform() -> Iterator[Client]:
    """Yield a client from the environment; turn its errors into one line and an exit code.

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
    """Print an error about the arguments; the caller raises the exit that is returned."""
    return _leave(message, USAGE)


def read_object(source: str) -> dict[str, Any]:
    """Read a JSON object from a file, or from standard input for ``-``; exit with code 2 if there is none."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        value = json.loads(text)
    except (OSError, ValueError) as error:
        raise usage_error(f"{source}: {error}") from None
    if not isinstance(value, dict):
        raise usage_error(f"{source}: not a JSON object")
    return value


def show(view: BaseModel, as_json: bool) -> None:
    """Print one object, as a table of its fields or as JSON."""
    fields = view.model_dump(mode="json")
    if as_json:
        _print_json(fields)
    else:
        _print_rows([("field", "value")], ((name, _cell(value)) for name, value in fields.items()))


def show_list(views: Iterable[BaseModel], columns: Sequence[str], as_json: bool) -> None:
    """Print objects as a table on a terminal, as tab-separated lines elsewhere, or as JSON.

    A dot in a column's name leads into a nested field.
    """
    items = [view.model_dump(mode="json") for view in views]
    if as_json:
        _print_json(items)
    else:
        _print_rows([tuple(columns)], (tuple(_cell(_field(item, column)) for column in columns) for item in items))


def take(views: Iterable[Any], limit: int) -> list[Any]:
    """Take the first ``limit`` items, without fetching further pages."""
    return list(islice(views, limit))


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Parse ``name=value`` arguments; commas separate several in one text."""
    found = {}
    for part in (part for text in texts for part in text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name:
            raise usage_error(f"{option} takes name=value, not {part!r}")
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
