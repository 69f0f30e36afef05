"""``armature jobs``."""

from __future__ import annotations

import json
import sys
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from armature_cli.commands.session import (
    INTERRUPTED,
    JsonOption,
    LimitOption,
    notes,
    pairs,
    platform,
    read_object,
    show,
    show_list,
    take,
)

if TYPE_CHECKING:
    from armature.client import Client
    from armature.contracts.jobs import JobView

app = typer.Typer(help="Submit jobs and follow them.", no_args_is_help=True)

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job.")]
_FIRST_EVENTS = 2
"""The events that a submission writes: queued, and the price."""
_COLUMNS = ("id", "kind", "state", "phase", "progress.percent", "attempt", "created_at")


@app.command()
def create(
    spec: Annotated[str, typer.Argument(help="A JSON file with the spec, or - for standard input.")],
    shared: Annotated[bool, typer.Option(help="Let every tenant use the results.")] = False,
    metadata: Annotated[list[str] | None, typer.Option(help="Metadata of the job, name=value; repeatable.")] = None,
    wait: Annotated[bool, typer.Option(help="Follow the job to its end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Submit a job."""
    with platform() as client:
        job = client.jobs.create(read_object(spec), shared=shared, metadata=pairs(metadata or [], "--metadata"))
        _print_price(client, job.id)
        if wait:
            notes.print(f"job {job.id}", markup=False)
            job = _follow(client, job.id)
        show(job, as_json)


@app.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option(help="List jobs in this state only.")] = None,
    kind: Annotated[str | None, typer.Option(help="List jobs of this kind only.")] = None,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    with platform() as client:
        filters = {name: value for name, value in (("state", state), ("kind", kind)) if value}
        show_list(take(client.jobs.list(limit=min(limit, 100), **filters), limit), _COLUMNS, as_json)


@app.command()
def get(job: JobArgument, as_json: JsonOption = False) -> None:
    """Show a job."""
    with platform() as client:
        show(client.jobs.retrieve(job), as_json)


@app.command()
def watch(job: JobArgument, as_json: JsonOption = False) -> None:
    """Follow a job to its end. Ctrl-C stops watching, not the job. Exit code 1 if the job fails."""
    with platform() as client:
        try:
            show(_follow(client, job), as_json)
        except KeyboardInterrupt:
            notes.print(f"job {job} continues; to watch it again: armature jobs watch {job}", markup=False)
            raise typer.Exit(INTERRUPTED) from None


@app.command()
def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option(help="Print new lines until the job ends.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print a job's log."""
    with platform() as client:
        for event in client.jobs.stream_events(job) if follow else client.jobs.list_events(job):
            line = event.model_dump_json() if as_json else f"{event.seq:>5} {event.level:<5} {_text(event)}"
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


@app.command()
def cancel(job: JobArgument, as_json: JsonOption = False) -> None:
    """Request the cancellation of a job."""
    with platform() as client:
        show(client.jobs.cancel(job), as_json)


@app.command()
def pause(job: JobArgument, as_json: JsonOption = False) -> None:
    """Pause a job: it saves a checkpoint and releases its worker."""
    with platform() as client:
        show(client.jobs.pause(job), as_json)


@app.command()
def resume(job: JobArgument, as_json: JsonOption = False) -> None:
    """Requeue a paused job."""
    with platform() as client:
        show(client.jobs.resume(job), as_json)


@app.command()
def retry(job: JobArgument, as_json: JsonOption = False) -> None:
    """Submit a failed or cancelled job again, as a new job."""
    with platform() as client:
        show(client.jobs.retry(job), as_json)


def _print_price(client: Client, job_id: str) -> None:
    """Print what the job costs at most, if the platform can say so before it starts."""
    for event in islice(client.jobs.list_events(job_id, limit=_FIRST_EVENTS), _FIRST_EVENTS):
        if "price" in event.data:
            notes.print(event.message, markup=False)


def _follow(client: Client, job_id: str) -> JobView:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes) as progress:
        bar = progress.add_task("queued", total=100)
        return client.jobs.wait(
            job_id,
            timeout=float("inf"),
            poll=1.0,
            on_progress=lambda job: progress.update(bar, description=_phase(job), completed=job.progress.percent),
        )


def _phase(job: JobView) -> str:
    if job.waiting_for is not None:
        return f"{job.state}: {job.waiting_for.message()}"
    return job.state if job.state != "running" else job.phase


def _text(event: Any) -> str:
    return event.message if event.type == "message" else json.dumps(event.data)
