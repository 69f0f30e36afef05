"""``armature artifacts``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from armature_cli.commands.session import FAILED, JsonOption, LimitOption, platform, show, show_list, take

if TYPE_CHECKING:
    from armature.contracts.artifacts import ArtifactKind

app = typer.Typer(help="What jobs made.", no_args_is_help=True)

ArtifactArgument = Annotated[str, typer.Argument(metavar="ARTIFACT", help="Id of an artifact.")]
_COLUMNS = ("id", "kind", "name", "bytes", "job_id", "digest", "created_at")


@app.command("list")
def list_artifacts(
    kind: Annotated[str | None, typer.Option(help="checkpoint, task_vector, adapter or report.")] = None,
    job: Annotated[str | None, typer.Option(help="Only those of a job.")] = None,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """List artifacts, newest first."""
    with platform() as client:
        found = client.artifacts.list(kind=cast("ArtifactKind | None", kind), job=job, limit=min(limit, 100))
        show_list(take(found, limit), _COLUMNS, as_json)


@app.command()
def get(artifact: ArtifactArgument, as_json: JsonOption = False) -> None:
    """Show an artifact."""
    with platform() as client:
        show(client.artifacts.retrieve(artifact), as_json)


@app.command()
def manifest(artifact: ArtifactArgument, as_json: JsonOption = False) -> None:
    """Show the manifest."""
    with platform() as client:
        show(client.artifacts.manifest(artifact), as_json)


@app.command()
def download(
    artifact: ArtifactArgument,
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Made when missing.")],
    as_json: JsonOption = False,
) -> None:
    """Download all files, each verified by its digest."""
    with platform() as client:
        show_list(client.artifacts.download(artifact, folder).files, ("path", "size", "sha256"), as_json)


@app.command()
def verify(artifact: ArtifactArgument, as_json: JsonOption = False) -> None:
    """Have the stored files read and compared with their digests. Exit code 1 if one is damaged."""
    with platform() as client:
        verification = client.artifacts.verify(artifact)
        show_list(verification.files, ("path", "ok", "problem"), as_json)
        if not verification.ok:
            raise typer.Exit(FAILED)


@app.command()
def link(
    artifact: ArtifactArgument,
    path: Annotated[str, typer.Argument(help="A file of the artifact.")],
    seconds: Annotated[int, typer.Option(min=1, max=3600)] = 300,
    as_json: JsonOption = False,
) -> None:
    """Print a URL that downloads one file without a key."""
    with platform() as client:
        show(client.artifacts.link(artifact, path, seconds=seconds), as_json)


@app.command()
def lineage(artifact: ArtifactArgument, as_json: JsonOption = False) -> None:
    """Show what it was made from, and what was made from it."""
    with platform() as client:
        graph = client.artifacts.lineage(artifact)
        if as_json:
            show(graph, as_json)
        else:
            show_list(graph.edges, ("child", "role", "parent"), as_json)


@app.command()
def delete(artifact: ArtifactArgument) -> None:
    """Delete an artifact that nothing refers to."""
    with platform() as client:
        client.artifacts.delete(artifact)
