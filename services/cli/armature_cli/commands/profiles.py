"""``armature profiles``."""

from __future__ import annotations

from typing import Annotated

import typer

from armature_cli.commands.session import (
    JsonOption,
    LimitOption,
    platform,
    read_object,
    show,
    show_list,
    take,
    usage_error,
)

app = typer.Typer(help="Profiles, their versions and aliases.", no_args_is_help=True)

ProfileArgument = Annotated[str, typer.Argument(metavar="PROFILE", help="Name of a profile.")]
AliasOption = Annotated[str, typer.Option(help="Name of the alias.")]
IfVersionOption = Annotated[int | None, typer.Option(help="Move only if the alias points at this version.")]
_VERSION_COLUMNS = ("version", "base_model", "harm_vector", "harm_scale", "arm", "created_at")


@app.command("list")
def list_profiles(limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List profiles, newest first."""
    with platform() as client:
        columns = ("name", "latest_version", "aliases", "description")
        show_list(take(client.profiles.list(limit=min(limit, 100)), limit), columns, as_json)


@app.command()
def get(profile: ProfileArgument, as_json: JsonOption = False) -> None:
    """Show a profile."""
    with platform() as client:
        show(client.profiles.retrieve(profile), as_json)


@app.command()
def create(
    profile: ProfileArgument,
    description: Annotated[str, typer.Option(help="Free text.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Create an empty profile."""
    with platform() as client:
        show(client.profiles.create(profile, description), as_json)


@app.command()
def freeze(
    profile: ProfileArgument,
    version: Annotated[str, typer.Argument(help="JSON file with the version's parts, or - for standard input.")],
    as_json: JsonOption = False,
) -> None:
    """Freeze a combination of parts as the profile's next version."""
    combination = read_object(version)
    with platform() as client:
        show(client.profiles.create_version(profile, combination), as_json)


@app.command()
def versions(profile: ProfileArgument, limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List a profile's versions, newest first."""
    with platform() as client:
        found = client.profiles.list_versions(profile, limit=min(limit, 100))
        show_list(take(found, limit), _VERSION_COLUMNS, as_json)


@app.command()
def promote(
    profile: ProfileArgument,
    version: Annotated[int, typer.Argument(min=1, help="Number of the version.")],
    alias: AliasOption = "live",
    if_version: IfVersionOption = None,
    canary: Annotated[str | None, typer.Option(help="VERSION:WEIGHT of a canary, such as 4:0.05.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Point an alias at a version; `live` is the alias that is served by default."""
    from armature.contracts.aliases import CanarySplit

    split = None
    if canary is not None:
        number, _, weight = canary.partition(":")
        try:
            split = CanarySplit(version=int(number), weight=float(weight))
        except ValueError:
            raise usage_error("--canary takes VERSION:WEIGHT, with a weight between 0 and 1") from None
    with platform() as client:
        moved = client.profiles.aliases.move(profile, version, alias, if_version=if_version, canary=split)
        show(moved, as_json)


@app.command()
def rollback(
    profile: ProfileArgument,
    alias: AliasOption = "live",
    if_version: IfVersionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Point an alias back at the previous version."""
    with platform() as client:
        show(client.profiles.aliases.roll_back(profile, alias, if_version=if_version), as_json)


@app.command()
def history(
    profile: ProfileArgument, alias: AliasOption = "live", limit: LimitOption = 20, as_json: JsonOption = False
) -> None:
    """List an alias' moves, newest first."""
    with platform() as client:
        columns = ("seq", "version", "canary", "rollback", "key_id", "reports", "created_at")
        show_list(take(client.profiles.aliases.history(profile, alias), limit), columns, as_json)


@app.command()
def gate(
    profile: ProfileArgument,
    rules: Annotated[list[str], typer.Argument(help="Bounds on metrics, such as asr_high<=0.05 or mip>=0.2.")],
    alias: AliasOption = "live",
    as_json: JsonOption = False,
) -> None:
    """Gate an alias: it moves only to versions whose evaluations meet every rule."""
    from armature.contracts.aliases import AliasGate

    try:
        parsed = AliasGate.model_validate({"rules": [_rule(rule) for rule in rules]})
    except ValueError:
        raise usage_error("a rule has the form metric<=number or metric>=number") from None
    with platform() as client:
        show(client.profiles.aliases.set_gate(profile, parsed, alias), as_json)


def _rule(text: str) -> dict[str, str | float]:
    for sign, bound in (("<=", "at_most"), (">=", "at_least")):
        metric, found, number = text.partition(sign)
        if found:
            return {"metric": metric.strip(), bound: float(number)}
    raise ValueError(text)
