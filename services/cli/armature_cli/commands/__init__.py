"""The commands that call a running platform, a module per resource."""

from __future__ import annotations

import typer

from armature_cli.commands.artifacts import app as artifacts
from armature_cli.commands.datasets import app as datasets
from armature_cli.commands.doctor import doctor
from armature_cli.commands.files import app as files
from armature_cli.commands.generate import generate
from armature_cli.commands.jobs import app as jobs
from armature_cli.commands.keys import app as keys
from armature_cli.commands.models import app as models
from armature_cli.commands.profiles import app as profiles

GROUPS = {
    "jobs": jobs,
    "files": files,
    "datasets": datasets,
    "models": models,
    "artifacts": artifacts,
    "profiles": profiles,
    "keys": keys,
}


def add_commands(app: typer.Typer) -> None:
    """Add every command to ``app``."""
    for name, group in GROUPS.items():
        app.add_typer(group, name=name)
    app.command()(generate)
    app.command()(doctor)
