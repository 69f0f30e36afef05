"""The subcommands of ``armature bench``. What a benchmark imports is imported when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from armature_cli.bench.plan import DeviceChoice, DtypeChoice, Plan, Size, Targets

app = typer.Typer(help="Benchmarks: ratios against named peers, in one run.", no_args_is_help=True)

_BATCHES = [1, 4, 16]


@app.callback()
def _bench() -> None:
    """Keeps the subcommands' names when there is only one."""


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
