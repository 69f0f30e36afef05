"""``armature bench``: an alias of ``python -m benchmarks`` for checkouts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

_CHECKOUT = Path(__file__).resolve().parents[3]
PASS_EVERYTHING_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
"""Click settings under which every argument, ``--help`` included, reaches the alias as it was typed."""


def bench(arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGUMENTS]...")] = None) -> None:
    """Run `python -m benchmarks` of this checkout with the same arguments."""
    if not (_CHECKOUT / "benchmarks/__main__.py").is_file():
        typer.echo("error: benchmarks are no part of this package; in a checkout run: python -m benchmarks", err=True)
        raise typer.Exit(2)
    path = os.pathsep.join(filter(None, [str(_CHECKOUT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "benchmarks", *(arguments or [])]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})  # noqa: S606 - there is no shell to want
