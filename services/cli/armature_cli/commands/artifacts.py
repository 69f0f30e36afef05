"""``armature artifacts``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from armature_cli.commands.session import FAILED, JsonOption, LimitOption, platform, show, show_list, take

if TYPE_CHECKING:
    from armature.contracts.artifacts import ArtifactKind

app = typer.Typer(help="Artifacts: the results of jobs.", no_args_is_help=True)

ArtifactArgument = Annotated[str, typer.Argument(metavar="ARTIFACT", help="Id of an artifact.")]
_COLUMNS = ("id", "kind", "name", "bytes", "job_id", "digest", "created_at")


@app.command("list")
def list_artifacts(
    kind: Annotated[str | None, typer.Option(help="List one kind: checkpoint, task_vector, adapter or report.")] = None,
    job: Annotated[str | None, typer.Option(help="List the artifacts of this job only.")] = None,
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
    """Show an artifact's manifest."""
    with platform() as client:
        show(client.artifacts.manifest(artifact), as_json)


@app.command()
def download(
    artifact: ArtifactArgument,
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Target folder, created if missing.")],
    as_json: JsonOption = False,
) -> None:
    """Download all files of an artifact and verify their digests."""
    with platform() as client:
        show_list(client.artifacts.download(artifact, folder).files, ("path", "size", "sha256"), as_json)


@app.command()
def verify(artifact: ArtifactArgument, as_json: JsonOption = False) -> None:
    """Check the stored files against their digests. Exit code 1 if one is damaged."""
    with platform() as client:
        verification = client.artifacts.verify(artifact)
        show_list(verification.files, ("path", "ok", "problem"), as_json)
        if not verification.ok:
            raise typer.Exit(FAILED)


@app.command()
def link(
    artifact: ArtifactArgument,
    path: Annotated[str, typer.Argument(help="Path of a file in the artifact.")],
    seconds: Annotated[int, typer.Option(min=1, max=3600, help="Lifetime of the URL in seconds.")] = 300,
    as_json: JsonOption = False,
) -> None:
    """Print a URL that downloads one file without a key."""
    with platform() as client:
        show(client.artifacts.link(artifact, path, seconds=seconds), as_json)


@app.command()
def lineage(artifact: ArtifactArgument, as_json: JsonOption = False) -> None:
    """Show the artifacts that this one was made from and those made from it."""
    with platform() as client:
        graph = client.artifacts.lineage(artifact)
        if as_json:
            show(graph, as_json)
        else:
            show_list(graph.edges, ("child", "role", "parent"), as_json)


@app.command()
def delete(artifact: ArtifactArgument) -> None:
    """Delete an artifact; refused while something refers to it."""
    with platform() as client:
        client.artifacts.delete(artifact)
