"""The subcommands of ``armature bench``. What a benchmark imports is imported when it runs."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from armature_cli.bench.plan import DeviceChoice, DtypeChoice, Plan, Size, Targets

app = typer.Typer(help="Benchmarks: ratios against named peers, in one run.", no_args_is_help=True)

_BATCHES = [1, 4, 16]


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
    from armature_cli.bench.harm_vector import Options, measure

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
    from armature_cli.bench.decode import measure
    from armature_cli.bench.report import emit

    plan = Plan(size, dtype, device, targets, tuple(batch), rounds, steps)
    emit(measure(plan, lambda line: typer.echo(line, err=True)), as_json)
