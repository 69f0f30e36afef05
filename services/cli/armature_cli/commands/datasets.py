"""``armature datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from armature_cli.commands.session import HarmfulOption, JsonOption, LimitOption, platform, show, show_list, take

if TYPE_CHECKING:
    from armature.contracts.datasets import BadRows, DatasetFormat

app = typer.Typer(help="Register files of rows as data sets.", no_args_is_help=True)

DatasetArgument = Annotated[str, typer.Argument(metavar="DATASET", help="Id of a data set.")]
_COLUMNS = ("id", "name", "format", "rows", "file_id", "created_at")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the data set.")],
    file: Annotated[str, typer.Argument(help="Path of a file of rows, or id of an uploaded file.")],
    format: Annotated[str | None, typer.Option(help="Refuse the file unless it has this format.")] = None,
    attribute: Annotated[str | None, typer.Option(help="Attribute of judgements whose rows name none.")] = None,
    on_bad_rows: Annotated[str, typer.Option(help="refuse, or skip: leave bad rows out and count them.")] = "refuse",
    check: Annotated[
        bool, typer.Option("--check", help="Show the form, three rows, errors and warnings; store nothing.")
    ] = False,
    harmful: HarmfulOption = False,
    as_json: JsonOption = False,
) -> None:
    """Register a file as a data set."""
    with platform() as client:
        is_path = Path(file).is_file()
        if check:
            show(client.datasets.check(Path(file) if is_path else client.files.content(file)), as_json)
            return
        file_id = client.files.create(Path(file), harmful=harmful).id if is_path else file
        asked = cast("DatasetFormat | None", format), attribute
        show(client.datasets.create(name, file_id, *asked, on_bad_rows=cast("BadRows", on_bad_rows)), as_json)


@app.command("list")
def list_datasets(limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List data sets, newest first."""
    with platform() as client:
        show_list(take(client.datasets.list(limit=min(limit, 100)), limit), _COLUMNS, as_json)


@app.command()
def get(dataset: DatasetArgument, as_json: JsonOption = False) -> None:
    """Show a data set with its statistics."""
    with platform() as client:
        show(client.datasets.retrieve(dataset), as_json)


@app.command()
def delete(dataset: DatasetArgument) -> None:
    """Delete a data set; refused while something refers to it."""
    with platform() as client:
        client.datasets.delete(dataset)
