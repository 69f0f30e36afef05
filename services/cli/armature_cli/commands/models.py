"""``armature models``: base models. A decoder serves profiles, not these."""

from __future__ import annotations

from typing import Annotated

import typer

from armature_cli.commands.session import JsonOption, LimitOption, platform, show, show_list, take

app = typer.Typer(help="Base models and their aliases.", no_args_is_help=True)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Id of a base model.")]
_COLUMNS = ("id", "name", "architecture", "parameters", "dtype", "bytes", "shared", "created_at")


@app.command("list")
def list_models(limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List base models, newest first."""
    with platform() as client:
        show_list(take(client.base_models.list(limit=min(limit, 100)), limit), _COLUMNS, as_json)


@app.command()
def get(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Show a base model."""
    with platform() as client:
        show(client.base_models.retrieve(model), as_json)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the base model.")],
    artifact: Annotated[str, typer.Argument(help="Id of a checkpoint artifact.")],
    as_json: JsonOption = False,
) -> None:
    """Register a checkpoint as a base model."""
    with platform() as client:
        show(client.base_models.create(name, artifact), as_json)


@app.command()
def delete(model: ModelArgument) -> None:
    """Remove a base model's name; refused while something refers to it."""
    with platform() as client:
        client.base_models.delete(model)


@app.command()
def alias(
    name: Annotated[str, typer.Argument(help="Name of the alias.")], model: ModelArgument, as_json: JsonOption = False
) -> None:
    """Point an alias at a base model."""
    with platform() as client:
        show(client.base_models.move_alias(name, model), as_json)


@app.command()
def aliases(as_json: JsonOption = False) -> None:
    """List aliases."""
    with platform() as client:
        show_list(client.base_models.list_aliases(), ("alias", "base_model", "updated_at"), as_json)
