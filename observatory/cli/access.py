"""`observatory rotate-passwords`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from observatory import operations
from observatory.cli.app import Engine, EngineOption, EnvironmentOption, Output, OutputOption, app, finite, print_json
from observatory.cli.terminal import ConsoleReporter, print_result, table
from observatory.documents.logins import PAIRED_ROLES, PairedRole
from observatory.errors import DONE, FAILED


@app.command()
def rotate_passwords(
    *,
    environment: EnvironmentOption = "local",
    role: Annotated[list[str] | None, typer.Option(help="Only this role; repeatable. Default: all.")] = None,
    wait: Annotated[
        float, typer.Option(min=0, max=3600, callback=finite, help="Seconds for clients to leave the old login.")
    ] = 60.0,
    lock_wait: Annotated[
        float, typer.Option(min=0, max=86400, callback=finite, help="Seconds to wait for the deployment lock.")
    ] = 0,
    output: OutputOption = Output.TABLE,
    engine: EngineOption = Engine.AUTO,
) -> None:
    """Rotate database passwords without failing a request.

    Exit code 1 if an old login is still in use.
    """
    with ConsoleReporter() as report, operations.waiting_for_lock(lock_wait):
        done = operations.rotate_passwords(
            operations.open_workspace(environment),
            roles=_roles(role),
            patience_s=wait,
            choice=engine.value,
            report=report,
        )
    if output is Output.JSON:
        print_json({"roles": [asdict(each) for each in done]})
    else:
        rows = [
            (each.role, each.login, "replaced" if each.retired else "in use: run the command again") for each in done
        ]
        print_result(table("Passwords", ("role", "active login", "previous password"), rows))
    raise typer.Exit(DONE if all(each.retired for each in done) else FAILED)


def _roles(names: list[str] | None) -> tuple[PairedRole, ...]:
    for name in names or ():
        if name not in PAIRED_ROLES:
            raise typer.BadParameter(f"unknown role {name!r}; expected one of {', '.join(PAIRED_ROLES)}")
    return tuple(role for role in PAIRED_ROLES if not names or role in names)
