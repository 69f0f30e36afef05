"""The subcommands of ``armature bench``. What a benchmark imports is imported when it runs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

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

app = typer.Typer(help="Benchmarks: ratios against named peers, in one run.", no_args_is_help=True)

_BATCHES = [1, 4, 16]
_SEEDS = [0, 1, 2]


@app.command("harm-vector")
def harm_vector(
    gib: Annotated[float, typer.Option(help="Size of the generated checkpoint.", min=0.01)] = 2.0,
    shards: Annotated[int, typer.Option(help="How many files it is cut into.", min=1)] = 4,
    density: Annotated[float, typer.Option(help="Share of the entries that is kept.", min=0.0001, max=1)] = 0.1,
    rounds: Annotated[int, typer.Option(help="Rounds of copy and run; ratios are medians.", min=1)] = 3,
    mergekit: Annotated[str, typer.Option(help="mergekit's command, for the comparison.")] = "mergekit-yaml",
    folder: Annotated[Path | None, typer.Option(help="Where to write; a temporary folder by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
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
    size: Annotated[Size, typer.Option(help="Shape of the random-weight model.")] = "125m",
    dtype: Annotated[DtypeChoice, typer.Option(help="auto: bfloat16 where the hardware multiplies it.")] = "auto",
    device: Annotated[DeviceChoice, typer.Option(help="auto: cuda where there is one.")] = "auto",
    targets: Annotated[Targets, typer.Option(help="What the adapter is on.")] = "attention",
    batch: Annotated[list[int], typer.Option(min=1, help="Batch size; may be repeated.")] = _BATCHES,
    rounds: Annotated[int, typer.Option(min=1, help="Times that every contender has its turn.")] = 9,
    steps: Annotated[int, typer.Option(min=2, help="Tokens per turn.")] = 24,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Cost of a guided decoding step against an unguided one and against other ways to guide."""
    from benchmarks.decode import measure
    from benchmarks.report import emit

    plan = Plan(size, dtype, device, targets, tuple(batch), rounds, steps)
    emit(measure(plan, lambda line: typer.echo(line, err=True)), as_json)


@app.command()
def train(
    size: Annotated[Size, typer.Option(help="Shape of the random-weight model.")] = "125m",
    dtype: Annotated[DtypeChoice, typer.Option(help="auto: bfloat16 where the hardware multiplies it.")] = "auto",
    device: Annotated[DeviceChoice, typer.Option(help="auto: cuda where there is one.")] = "auto",
    layers: Annotated[Adapted, typer.Option(help="Which layers the adapter is on.")] = "all",
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of answers per step.")] = 4,
    tokens: Annotated[tuple[int, int], typer.Option(min=1, help="Of a prompt and of an answer, half more or less.")] = (
        92,
        36,
    ),
    rounds: Annotated[int, typer.Option(min=1, help="Times that every contender has its turn.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Cost of a training step with five objectives against one objective and against other ways to train."""
    from benchmarks.report import emit
    from benchmarks.train import measure

    plan = TrainPlan(size, dtype, device, layers, pairs, *tokens, rounds)
    emit(measure(plan, lambda line: typer.echo(line, err=True)), as_json)


@app.command()
def serve(
    size: Annotated[Size, typer.Option(help="Shape of the random-weight models.")] = "35m",
    dtype: Annotated[DtypeChoice, typer.Option(help="auto: bfloat16 where the hardware multiplies it.")] = "auto",
    device: Annotated[DeviceChoice, typer.Option(help="auto: cuda where there is one.")] = "auto",
    slots: Annotated[int, typer.Option(min=1, help="Requests that run side by side.")] = 16,
    requests: Annotated[int, typer.Option(min=2, help="Of a turn at half load; a quarter where less is asked.")] = 400,
    swaps: Annotated[int, typer.Option(min=1, help="Under load.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each server, saturated and at half load.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Latency and throughput of a decoder over HTTP, against static batching and during hot swaps."""
    from benchmarks.report import emit
    from benchmarks.serve.measure import measure

    plan = ServePlan(size, dtype, device, slots, requests, swaps, rounds)
    with tempfile.TemporaryDirectory(prefix="armature-bench-") as scratch:
        emit(measure(plan, Path(scratch), lambda line: typer.echo(line, err=True)), as_json)


@app.command()
def api(
    jobs: Annotated[int, typer.Option(min=2000, help="Jobs in the full tables; each has ten events.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=2, help="Times that every request, and every claim, has its turn.")] = 200,
    submissions: Annotated[int, typer.Option(min=2, help="Jobs submitted to an idle worker.")] = 40,
    database_url: Annotated[
        str | None,
        typer.Option(help="A PostgreSQL to make databases on; by default one is started."),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Where to write; a temporary folder by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """The control plane with full tables: lists, claims, the relay, and the time until a job runs."""
    from benchmarks.api.benchmark import measure
    from benchmarks.postgres import PostgresMissing
    from benchmarks.report import emit

    plan = ApiPlan(jobs, rounds, submissions, database_url)
    try:
        emit(measure(plan, folder, lambda line: typer.echo(line, err=True)), as_json)
    except PostgresMissing as error:
        typer.echo(f"{error} with --database-url", err=True)
        raise typer.Exit(2) from None


@app.command()
def evidence(
    table: Annotated[list[str] | None, typer.Option(help="Which question; may be repeated. All by default.")] = None,
    seed: Annotated[list[int], typer.Option(min=0, help="Of a world; may be repeated.")] = _SEEDS,
    steps: Annotated[int, typer.Option(min=1, help="Of every ARM's training.")] = 200,
    folder: Annotated[Path, typer.Option(help="Where results are kept: what lies there is not computed again.")] = Path(
        ".armature/evidence"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone, a line for each row.")] = False,
) -> None:
    """What each choice of the methods does in the demo world, seed by seed, by the product's own recipes."""
    from benchmarks.evidence.batch import as_markdown, carry_out
    from benchmarks.evidence.tables import TABLES

    if unknown := [name for name in table or () if name not in TABLES]:
        raise typer.BadParameter(f"no table {unknown[0]}; there are {', '.join(TABLES)}", param_hint="--table")
    rows = carry_out(table or list(TABLES), seed, steps, folder, lambda line: typer.echo(line, err=True))
    for name, of_table in itertools.groupby(rows, key=lambda row: row.table):
        if as_json:
            for row in of_table:
                typer.echo(json.dumps(row.as_json()))
        else:
            typer.echo(f"{as_markdown(name, list(of_table))}\n")
