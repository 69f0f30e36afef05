"""The ``armature`` command. Commands import what they need when they run: ``--help`` is quick and needs no extras."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from armature.logging import configure_logging
from armature.settings import LogSettings
from armature_cli.bench.main import app as bench

app = typer.Typer(
    help="Alignment platform: harm vectors, preference-conditioned reward models, guided decoding.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(bench, name="bench")

DataOption = Annotated[Path, typer.Option("--data", help="Where the platform keeps everything.")]


@app.callback()
def _main() -> None:
    configure_logging(LogSettings(level="WARNING", format="text"), "armature")


@app.command()
def up(
    data: DataOption = Path(".armature"),
    api_port: Annotated[int, typer.Option(help="Port of the API; 0 for any.")] = 8000,
    decoder_port: Annotated[int, typer.Option(help="Port of the decoder; 0 for any.")] = 8100,
    redis_port: Annotated[int, typer.Option(help="Port of the embedded broker; 0 for any.")] = 0,
) -> None:
    """Start API, relay, worker and decoder on this machine, with an embedded broker, database and store.

    Settings in the environment (ARMATURE_DATABASE__URL, ARMATURE_REDIS__URL, ARMATURE_STORE__KIND, ...) replace the
    embedded parts.
    """
    from armature_cli.embedded import EmbeddedPlatform, Options, PlatformError

    console = Console(soft_wrap=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with EmbeddedPlatform(Options(data, api_port, decoder_port, redis_port)) as platform:
            assert platform.supervisor is not None
            for child in platform.supervisor.children.values():
                console.print(f"{child.name:8} pid {child.pid}", highlight=False)
            console.print(f"api      {platform.api_url}", highlight=False)
            console.print(f"decoder  {platform.decoder_url}/v1", highlight=False)
            console.print(f"key      {platform.admin_key_file}", highlight=False)
            console.print("Ready. Ctrl-C stops it; data stays.", highlight=False)
            stop.wait()
            console.print("Stopping.", highlight=False)
    except PlatformError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(1) from None
