"""``armature keys``; needs a key with the scope ``platform``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from armature_cli.commands.session import JsonOption, platform, show, show_list

if TYPE_CHECKING:
    from collections.abc import Iterable

    from armature.contracts.tenants import Scope

app = typer.Typer(help="Tenants and their API keys.", no_args_is_help=True)


@app.command()
def tenants(as_json: JsonOption = False) -> None:
    """List tenants."""
    with platform() as client:
        show_list(client.tenants.list(), ("id", "name", "created_at"), as_json)


@app.command()
def create(
    tenant: Annotated[str, typer.Argument(help="Name of the tenant, created if there is none.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="Scope of the key; repeatable. The usual scopes of a tenant by default.")
    ] = None,
    also: Annotated[list[str] | None, typer.Option(help="Additional scope, such as harmful:write; repeatable.")] = None,
    name: Annotated[str, typer.Option(help="Name of the key.")] = "default",
    expires_at: Annotated[int | None, typer.Option(help="End of validity, seconds since the epoch.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Issue a key. Its token is printed once and stored nowhere."""
    from armature.contracts.tenants import TENANT_SCOPES

    scopes = cast("Iterable[Scope]", [*(scope or TENANT_SCOPES), *(also or ())])
    with platform() as client:
        owner = client.tenants.ensure(tenant)
        show(client.keys.create(owner.id, scopes=scopes, name=name, expires_at=expires_at), as_json)


@app.command("list")
def list_keys(tenant: Annotated[str, typer.Argument(help="Id of the tenant.")], as_json: JsonOption = False) -> None:
    """List a tenant's keys, newest first."""
    with platform() as client:
        columns = ("id", "name", "scopes", "expires_at", "revoked_at", "last_used_at")
        show_list(client.keys.list(tenant), columns, as_json)


@app.command()
def rotate(
    key: Annotated[str, typer.Argument(help="Id of a key.")],
    overlap: Annotated[int, typer.Option(min=0, help="Seconds during which the old key remains valid.")] = 3600,
    as_json: JsonOption = False,
) -> None:
    """Replace a key by a new one with the same scopes. Its token is printed once and stored nowhere."""
    with platform() as client:
        show(client.keys.rotate(key, overlap_seconds=overlap), as_json)


@app.command()
def revoke(key: Annotated[str, typer.Argument(help="Id of a key.")], as_json: JsonOption = False) -> None:
    """Revoke a key; decoders refuse it within seconds."""
    with platform() as client:
        show(client.keys.revoke(key), as_json)
