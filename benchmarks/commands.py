"""The commands of ``python -m benchmarks``. What a benchmark needs is imported when it runs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from armature.logging import configure_logging
from armature.settings import LogSettings
from benchmarks.plan import (
    Adapted,
    ApiPlan,
    DeviceChoice,
    DtypeChoice,
    Plan,
    ServePlan,
    Size,
    Targets,
    TrainPlan,
)

app = typer.Typer(
    help="Benchmarks: ratios against named peers, measured in one run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SizeOption = Annotated[Size, typer.Option(help="Shape of the random-weight model.")]
DtypeOption = Annotated[DtypeChoice, typer.Option(help="auto: bfloat16 if the hardware multiplies it, else float32.")]
DeviceOption = Annotated[DeviceChoice, typer.Option(help="auto: cuda if there is a GPU, else cpu.")]
ScratchOption = Annotated[Path | None, typer.Option(help="Parent of the scratch folder; the system's by default.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print nothing but JSON.")]

_BATCHES = [1, 4, 16]
_SEEDS = [0, 1, 2]


@app.callback()
def _main() -> None:
    configure_logging(LogSettings(level="WARNING", format="text"), "benchmarks")


@app.command("harm-vector")
def harm_vector(
    gib: Annotated[float, typer.Option(help="Size of the generated checkpoint in GiB.", min=0.01)] = 2.0,
    shards: Annotated[int, typer.Option(help="Number of files of the checkpoint.", min=1)] = 4,
    density: Annotated[float, typer.Option(help="Share of the entries that is kept.", min=0.0001, max=1)] = 0.1,
    rounds: Annotated[int, typer.Option(help="Rounds of copy and run; ratios are medians.", min=1)] = 3,
    mergekit: Annotated[str, typer.Option(help="Command of the peer mergekit; left out if missing.")] = "mergekit-yaml",
    folder: ScratchOption = None,
    as_json: JsonOption = False,
) -> None:
    """Select and subtract on a generated pair of bfloat16 checkpoints: time, memory and exactness."""
    from benchmarks.harm_vector import Options, measure

    with tempfile.TemporaryDirectory(dir=folder, prefix="armature-bench-") as scratch:
        result = measure(Options(gib, shards, density, rounds, mergekit), Path(scratch))
    values = dataclasses.asdict(result)
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    console = Console(soft_wrap=True, highlight=False)
    for name, value in values.items():
        console.print(f"{name:24} {value}")


@app.command()
def decode(
    size: SizeOption = "125m",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    targets: Annotated[Targets, typer.Option(help="Linear layers that carry the adapter.")] = "attention",
    batch: Annotated[list[int], typer.Option(min=1, help="Batch size; repeatable.")] = _BATCHES,
    rounds: Annotated[int, typer.Option(min=1, help="Measured runs of each contender, in turns.")] = 9,
    steps: Annotated[int, typer.Option(min=2, help="Tokens decoded in a run.")] = 24,
    as_json: JsonOption = False,
) -> None:
    """Cost of a guided decoding step against an unguided one and against other ways to guide."""
    from benchmarks.decode import measure
    from benchmarks.report import emit

    plan = Plan(size, dtype, device, targets, tuple(batch), rounds, steps)
    emit(measure(plan, _progress), as_json)


@app.command("decode-turns")
def decode_turns(
    other: Annotated[Path, typer.Option(help="The other checkout.", exists=True, file_okay=False)],
    size: SizeOption = "125m",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    batch: Annotated[list[int], typer.Option(min=1, help="Batch size; repeatable.")] = _BATCHES,
    rounds: Annotated[int, typer.Option(min=1, help="Measured runs of each engine in each checkout, in turns.")] = 9,
    steps: Annotated[int, typer.Option(min=2, help="Tokens decoded in a run.")] = 24,
    as_json: JsonOption = False,
) -> None:
    """Cost of a decoding step in this checkout against another one, asked in turns."""
    from benchmarks.decode_turns import measure
    from benchmarks.report import emit

    emit(measure(Plan(size, dtype, device, "attention", tuple(batch), rounds, steps), other, _progress), as_json)


@app.command()
def train(
    size: SizeOption = "125m",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    layers: Annotated[Adapted, typer.Option(help="Decoder layers that carry the adapter.")] = "all",
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of answers in a step.")] = 4,
    tokens: Annotated[
        tuple[int, int], typer.Option(min=1, help="Mean tokens of a prompt and of an answer (half to 1.5 times that).")
    ] = (92, 36),
    rounds: Annotated[int, typer.Option(min=1, help="Measured runs of each contender, in turns.")] = 7,
    as_json: JsonOption = False,
) -> None:
    """Cost of a training step with five objectives against one objective and against other ways to train."""
    from benchmarks.report import emit
    from benchmarks.train import measure

    plan = TrainPlan(size, dtype, device, layers, pairs, *tokens, rounds)
    emit(measure(plan, _progress), as_json)


@app.command()
def serve(
    size: SizeOption = "35m",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    slots: Annotated[int, typer.Option(min=1, help="Size of the batch: requests that run side by side.")] = 16,
    requests: Annotated[
        int, typer.Option(min=2, help="Requests of a run at half load; the shorter runs send a quarter.")
    ] = 400,
    swaps: Annotated[int, typer.Option(min=1, help="Moves of the live version under load.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each server, saturated and at half load.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Latency and throughput of a decoder over HTTP, against static batching and during hot swaps."""
    from benchmarks.report import emit
    from benchmarks.serve.measure import measure

    plan = ServePlan(size, dtype, device, slots, requests, swaps, rounds)
    with tempfile.TemporaryDirectory(prefix="armature-bench-") as scratch:
        emit(measure(plan, Path(scratch), _progress), as_json)


@app.command()
def api(
    jobs: Annotated[int, typer.Option(min=2000, help="Jobs in the full tables, ten events each.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=2, help="Measured runs of each request and of a claim, in turns.")] = 200,
    submissions: Annotated[int, typer.Option(min=2, help="Jobs submitted to an idle worker.")] = 40,
    database_url: Annotated[
        str | None,
        typer.Option(help="PostgreSQL server to create databases on; one is started by default."),
    ] = None,
    folder: ScratchOption = None,
    as_json: JsonOption = False,
) -> None:
    """The control plane with full tables: lists, claims, the relay, and the time until a job runs."""
    from benchmarks.api.benchmark import measure
    from benchmarks.postgres import PostgresMissing
    from benchmarks.report import emit

    plan = ApiPlan(jobs, rounds, submissions, database_url)
    try:
        emit(measure(plan, folder, _progress), as_json)
    except PostgresMissing as error:
        typer.echo(f"{error} with --database-url", err=True)
        raise typer.Exit(2) from None


@app.command()
def evidence(
    table: Annotated[list[str] | None, typer.Option(help="Table to compute; repeatable. All by default.")] = None,
    seed: Annotated[list[int], typer.Option(min=0, help="Seed of a world; repeatable.")] = _SEEDS,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each ARM.")] = 200,
    folder: Annotated[Path, typer.Option(help="Folder of results; those found there are not computed again.")] = Path(
        ".armature/evidence"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print nothing but JSON, a line for each row.")] = False,
) -> None:
    """What each choice of the methods does in the demo world, seed by seed, by the product's own recipes."""
    from benchmarks.evidence.batch import as_markdown, carry_out
    from benchmarks.evidence.tables import TABLES

    if unknown := [name for name in table or () if name not in TABLES]:
        raise typer.BadParameter(f"no table {unknown[0]}; there are {', '.join(TABLES)}", param_hint="--table")
    rows = carry_out(table or list(TABLES), seed, steps, folder, _progress)
    for name, of_table in itertools.groupby(rows, key=lambda row: row.table):
        if as_json:
            for row in of_table:
                typer.echo(json.dumps(row.as_json()))
        else:
            typer.echo(f"{as_markdown(name, list(of_table))}\n")


def _progress(line: str) -> None:
    typer.echo(line, err=True)
