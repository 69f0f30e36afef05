"""``armature files``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from armature_cli.commands.session import HarmfulOption, JsonOption, LimitOption, notes, platform, show, show_list, take

if TYPE_CHECKING:
    from armature.contracts.files import FilePurpose

app = typer.Typer(help="Upload files and show what validation found.", no_args_is_help=True)

FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="Id of a file.")]
_COLUMNS = ("id", "filename", "purpose", "bytes", "format", "rows", "status", "created_at")


@app.command()
def upload(
    paths: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Paths of the files.")],
    purpose: Annotated[str, typer.Option(help="dataset or model.")] = "dataset",
    harmful: HarmfulOption = False,
    as_json: JsonOption = False,
) -> None:
    """Upload files."""
    with platform() as client:
        uploaded = []
        for path in paths:
            notes.print(f"uploading {path.name}", markup=False)
            uploaded.append(client.files.create(path, cast("FilePurpose", purpose), harmful=harmful))
        show_list(uploaded, _COLUMNS, as_json)


@app.command("list")
def list_files(limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List files, newest first."""
    with platform() as client:
        show_list(take(client.files.list(limit=min(limit, 100)), limit), _COLUMNS, as_json)


@app.command()
def get(file: FileArgument, as_json: JsonOption = False) -> None:
    """Show a file and what validation found."""
    with platform() as client:
        show(client.files.retrieve(file), as_json)


@app.command()
def delete(file: FileArgument, as_json: JsonOption = False) -> None:
    """Delete a file; refused while something refers to it."""
    with platform() as client:
        show(client.files.delete(file), as_json)
