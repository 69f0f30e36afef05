"""``armature bench``: one command per benchmark, each measured against its references in the same run."""

from __future__ import annotations

from typing import Annotated

import typer

from armature_cli.bench.plan import DeviceChoice, DtypeChoice, Plan, Size, Targets

app = typer.Typer(help="Measure what guidance costs, as ratios within one run.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")]


@app.command()
def decode(
    as_json: JsonOption = False,
    size: Annotated[Size, typer.Option(help="Shape of the random-weight model.")] = "125m",
    dtype: Annotated[DtypeChoice, typer.Option(help="auto: bfloat16 where the hardware multiplies it.")] = "auto",
    device: Annotated[DeviceChoice, typer.Option(help="auto: cuda where there is one.")] = "auto",
    targets: Annotated[Targets, typer.Option(help="What the adapter is on.")] = "attention",
    batch: Annotated[list[int], typer.Option(min=1, help="Batch size; may be repeated.")] = [1, 4, 16],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="Times that every contender has its turn.")] = 9,
    steps: Annotated[int, typer.Option(min=2, help="Tokens per turn.")] = 24,
) -> None:
    """Cost of a guided decoding step against an unguided one and against other ways to guide."""
    from armature_cli.bench.decode import measure
    from armature_cli.bench.report import emit

    emit(measure(Plan(size, dtype, device, targets, tuple(batch), rounds, steps)), as_json)
