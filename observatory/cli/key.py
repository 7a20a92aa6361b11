"""Commands for the API keys of the storage service."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer

from observatory import operations
from observatory.cli.app import EnvironmentOption, Output, OutputOption, app, print_json
from observatory.cli.terminal import print_result, table

group = typer.Typer(help="Create, list and revoke API keys of the service.", no_args_is_help=True)
app.add_typer(group, name="key")


def _scopes(names: list[str] | None) -> tuple[operations.Scope, ...]:
    for name in names or ():
        if name not in operations.SCOPES:
            raise typer.BadParameter(f"unknown scope {name!r}; expected one of {', '.join(operations.SCOPES)}")
    return tuple(scope for scope in operations.SCOPES if not names or scope in names)


@group.command()
def create(
    *,
    name: Annotated[str, typer.Option(help="Label of the key, e.g. who holds it.")],
    scope: Annotated[list[str] | None, typer.Option(help="read or write; repeatable. Default: both.")] = None,
    rate_limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Requests per minute.")] = 60,
    expires: Annotated[
        float | None, typer.Option(min=0.001, max=36_500, help="Days until it expires; default: never.", metavar="DAYS")
    ] = None,
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a key. It is shown once: the database stores only its hash."""
    made = operations.create_key(
        operations.open_workspace(environment),
        name=name,
        scopes=_scopes(scope),
        rate_limit_rpm=rate_limit,
        expires_in_days=expires,
    )
    if output is Output.JSON:
        print_json({"key": made.key, **_plain(made.stored)})
        return
    print_result(made.key)
    print_result(f"Store it now: it is not shown again. `observatory key revoke {made.stored.id}` revokes it.")


@group.command(name="list")
def list_all(environment: EnvironmentOption = "local", output: OutputOption = Output.TABLE) -> None:
    """List the keys, newest first."""
    found = operations.list_keys(operations.open_workspace(environment))
    if output is Output.JSON:
        print_json([_plain(each) for each in found])
        return
    rows = [
        (
            each.id,
            each.prefix,
            each.name,
            ", ".join(each.scopes),
            str(each.rate_limit_rpm),
            _day(each.expires_at),
            _day(each.last_used_at),
            each.state,
        )
        for each in found
    ]
    print_result(table("Keys", ("id", "prefix", "name", "scopes", "a minute", "expires", "last used", "state"), rows))


@group.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Id of the key, or its prefix.")],
    environment: EnvironmentOption = "local",
    output: OutputOption = Output.TABLE,
) -> None:
    """Revoke a key. The service refuses it within 5 seconds."""
    revoked = operations.revoke_key(operations.open_workspace(environment), key)
    if output is Output.JSON:
        print_json(_plain(revoked))
        return
    print_result(f"Revoked {revoked.prefix}… ({revoked.name}).")


def _plain(stored: Any) -> dict[str, Any]:
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in asdict(stored).items()}


def _day(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d}" if at else "never"
