"""The database logins of the local stack: passwords that the server refuses, and logins that clients use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from observatory.database import UnreachableError, connect
from observatory.database.connection import with_database
from observatory.database.errors import PasswordRefusedError
from observatory.documents.logins import POOLED_ROLES, login, logins_of, utc_now
from observatory.nodes import Paths
from observatory.nodes.pooler_console import console_command
from observatory.platforms.platform import Platform
from observatory.platforms.stack_state import outputs
from observatory.progress import Reporter, task


def renew_refused_logins(platform: Platform, report: Reporter) -> None:
    """Give a new password to each login that the server refuses; the `up` that follows sets it everywhere.

    A password is refused when it was changed on the server manually. If the server does not answer, nothing changes.
    """
    store = platform.workspace.access
    current = store.read()
    if current is None or "database_urls" not in outputs(platform):
        return
    urls: Mapping[str, str] = outputs(platform, show_secrets=True)["database_urls"]
    document = current
    refused = set(_refused(urls, _socket_directory(platform), platform.settings.ports.postgres))
    for role, side, _ in document.logins():
        if login(role, side) in refused:
            document = document.with_pair(role, document.pair(role).renewed(side, utc_now()))
    if refused:
        with task(report, f"the server refuses the password of {', '.join(sorted(refused))}: set new ones"):
            store.compare_and_set(current, document)


def _socket_directory(platform: Platform) -> str:
    """Return the directory of PostgreSQL's socket, where the pooler's logins connect."""
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - psycopg only where it is used

    return str(conninfo_to_dict(str(outputs(platform)["admin_database_url"]))["host"])


def _refused(urls: Mapping[str, str], socket: str, port: int) -> Iterator[str]:
    """Yield the logins whose passwords PostgreSQL itself refuses."""
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415 - psycopg only where it is used

    pooled = logins_of(*POOLED_ROLES)
    for name, url in urls.items():
        conninfo = make_conninfo(url, host=socket, port=port) if name in pooled else url
        try:
            with connect(conninfo, purpose="verify passwords"):
                pass
        except PasswordRefusedError:
            yield name
        except UnreachableError:
            return


def used_logins(platform: Platform, outputs: Mapping[str, Any]) -> set[str]:
    """Return the logins of pgBouncer's clients and of administrators' direct sessions."""
    console = console_command(Paths(), platform.settings.ports.pgbouncer, "SHOW CLIENTS")
    clients = {line.split("|")[1] for line in platform.workspace.sandbox.run(console).stdout.splitlines()}
    admin_url = with_database(str(outputs["admin_database_url"]), platform.settings.database.name)
    with connect(admin_url, purpose="rotate passwords") as admin:
        # Only administrators connect to PostgreSQL directly: every other session in pg_stat_activity is pgBouncer's.
        rows = admin.execute("SELECT DISTINCT usename::text FROM pg_stat_activity WHERE usename LIKE 'admin\\_%'")
        return clients | {row[0] for row in rows.fetchall()}
