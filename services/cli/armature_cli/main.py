"""The ``armature`` command.

Commands import their dependencies when they run, so ``--help`` is quick and needs no extras.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import httpx
import typer
from rich.console import Console

from armature.logging import configure_logging
from armature.settings import LogSettings
from armature_cli.bench import PASS_EVERYTHING_ON, bench
from armature_cli.commands import add_commands

if TYPE_CHECKING:
    from armature_cli.local_platform.embedded import EmbeddedPlatform

app = typer.Typer(
    help="Alignment platform: harm vectors, preference-conditioned reward models, guided decoding.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

add_commands(app)
app.command(context_settings=PASS_EVERYTHING_ON)(bench)

DataOption = Annotated[Path, typer.Option("--data", help="Data directory of the platform.")]
_console = Console(soft_wrap=True, highlight=False)

ApiPort = Annotated[int, typer.Option(help="Port of the API; 0 picks a free one.")]
DecoderPort = Annotated[int, typer.Option(help="Port of the decoder; 0 picks a free one.")]
RedisPort = Annotated[int, typer.Option(help="Port of the embedded broker; 0 picks a free one.")]


@app.callback()
def _main() -> None:
    configure_logging(LogSettings(level="WARNING", format="text"), "armature")


@app.command()
def up(
    data: DataOption = Path(".armature"),
    api_port: ApiPort = 8000,
    decoder_port: DecoderPort = 8100,
    redis_port: RedisPort = 0,
) -> None:
    """Start API, relay, worker and decoder on this machine, with an embedded broker, database and store.

    Settings in the environment (ARMATURE_DATABASE__URL, ARMATURE_REDIS__URL, ARMATURE_STORE__KIND, ...) replace the
    embedded parts.
    """
    _announce(data)
    from armature_cli.local_platform.embedded import EmbeddedPlatform, Options

    with _stopping_cleanly(), EmbeddedPlatform(Options(data, api_port, decoder_port, redis_port)) as platform:
        _introduce(platform)
        _wait_for_the_end()


@app.command()
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world, the base model and every job.")] = 0,
    data: DataOption = Path(".armature"),
    keep_up: Annotated[bool, typer.Option(help="Keep the platform running afterwards, until Ctrl-C.")] = False,
    api_port: ApiPort = 0,
    decoder_port: DecoderPort = 0,
) -> None:
    """Run the main job end to end in a tiny world: harm vector, reward model, evaluation, guided answers.

    A few minutes on two CPU cores. Figures go to DATA/demo/report.json, the tenants' keys to DATA/demo/keys.json.
    """
    _announce(data)
    from armature_cli.demo.story import WORKPLACE, tell
    from armature_cli.local_platform.embedded import EmbeddedPlatform, Options

    options = Options(data, api_port, decoder_port, environment=WORKPLACE)
    with _stopping_cleanly(), EmbeddedPlatform(options) as platform:
        _introduce(platform)
        tell(platform, seed)
        if keep_up:
            _wait_for_the_end()


def _announce(data: Path) -> None:
    """Print a first line at once: imports and starting processes take seconds."""
    _console.print(f"Starting the platform on {data} ...", markup=False)


def _introduce(platform: EmbeddedPlatform) -> None:
    """Print a line per process, the file of the first key and the folder of the logs."""
    for line in platform.describe():
        _console.print(line)


def _wait_for_the_end() -> None:
    """Block until Ctrl-C or SIGTERM."""
    _console.print("Running. Ctrl-C stops it; data stays.")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
    _console.print("Stopping.")


@contextmanager
def _stopping_cleanly() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that children are stopped; report expected errors in one line."""
    from armature.client import APIError, JobFailed
    from armature_cli.local_platform.embedded import PlatformError

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except (PlatformError, JobFailed, APIError, httpx.HTTPError, TimeoutError) as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
