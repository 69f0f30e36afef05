"""``armature bench``: one command per benchmark, each measured against its references in the same run."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Measure what guidance costs, as ratios within one run.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")]


@app.command()
def decode(
    as_json: JsonOption = False,
    size: Annotated[str, typer.Option(help="Shape of the random model: tiny, 125m, 500m, 7b.")] = "125m",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16; auto: bfloat16 where it is fast.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda; auto: cuda where there is one.")] = "auto",
    targets: Annotated[str, typer.Option(help="What the adapter is on: attention or attention_and_mlp.")] = "attention",
    batches: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,4,16",
    rounds: Annotated[int, typer.Option(min=1, help="Times that every contender has its turn.")] = 9,
    steps: Annotated[int, typer.Option(min=2, help="Tokens per turn.")] = 24,
) -> None:
    """Cost of a guided decoding step against an unguided one and against other ways to guide."""
    from armature_cli.bench.decode import Plan, measure
    from armature_cli.bench.report import emit

    sizes = tuple(int(batch) for batch in batches.split(","))
    emit(measure(Plan(size, dtype, device, targets, sizes, rounds, steps)), as_json)
