"""Updates the extensions of a database to the versions that the server's files provide.

Owns finding those updates, and making them as superuser. Does not install files or restart the server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from psycopg import sql

from observatory.database.connection import connect, describe
from observatory.database.error_translation import translate_errors
from observatory.database.errors import UnsuitableServerError
from observatory.database.migration_backup import Backup, make_backup

# TimescaleDB loads the library of the installed version into each session, which the server may no longer have.
_WITHOUT_LIBRARY = {"timescaledb.disable_load": "on"}
_LOCK_TIMEOUT = {"lock_timeout": "30s", "statement_timeout": "0"}
_REMEDY = "The extension was not changed. Correct the cause and run `observatory up` again"
_VERSIONS = """
    SELECT e.extname, e.extversion, a.default_version,
           EXISTS (SELECT FROM pg_extension_update_paths(e.extname) p
                   WHERE p.source = e.extversion AND p.target = a.default_version AND p.path IS NOT NULL)
    FROM pg_extension e JOIN pg_available_extensions a ON a.name = e.extname
    WHERE e.extversion <> a.default_version
    ORDER BY e.extname <> 'timescaledb', e.extname
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtensionUpdate:
    """An update of an extension: the version in the database, and the one that the server's files provide."""

    name: str
    installed: str
    available: str

    def __str__(self) -> str:
        return f"{self.name} {self.installed} to {self.available}"


def pending_extension_updates(conninfo: str) -> tuple[ExtensionUpdate, ...]:
    """Return the updates that `update_extensions` would make, TimescaleDB first. Changes nothing.

    Args:
        conninfo: to the database, as any login.

    Raises:
        UnreachableError: the connection failed.
        UnsuitableServerError: the server's files of TimescaleDB do not fit the version in the database.
    """
    with (
        connect(conninfo, purpose="versions of extensions", settings=_WITHOUT_LIBRARY) as connection,
        translate_errors(describe(conninfo)),
    ):
        return _pending(connection, conninfo)


def _pending(connection: psycopg.Connection, conninfo: str) -> tuple[ExtensionUpdate, ...]:
    updates = []
    for name, installed, available, has_path in connection.execute(_VERSIONS).fetchall():
        if has_path:
            updates.append(ExtensionUpdate(name=name, installed=installed, available=available))
        elif name == "timescaledb":
            raise UnsuitableServerError(
                f"{describe(conninfo)} has TimescaleDB {installed}, and the server's files are of {available}, which "
                f"cannot continue from it. Install TimescaleDB {installed} or a later version on the server"
            )
    return tuple(updates)


def update_extensions(
    conninfo: str, *, backup: Backup | None = None, report: Callable[[str], None] = lambda _detail: None
) -> tuple[ExtensionUpdate, ...]:
    """Update the extensions of a database, each in a session of its own; return the updates.

    Each update is the first statement of its session: TimescaleDB refuses it where a library is loaded. Sessions that
    are open keep the old library and have to connect again.

    Args:
        conninfo: to the database, as superuser.
        backup: makes a backup first, if there is something to update; None: no backup is made.
        report: called with the progress.

    Raises:
        BackupFailedError: the backup failed; nothing was changed.
        StatementFailedError: an update failed; the earlier ones stay.
        UnreachableError, UnsuitableServerError: see `pending_extension_updates`.
    """
    updates = pending_extension_updates(conninfo)
    if updates and backup:
        make_backup(backup, report)
    for update in updates:
        report(f"update of extension {update}")
        with (
            connect(conninfo, purpose=f"update {update.name}", settings=_LOCK_TIMEOUT) as connection,
            translate_errors(f"update of extension {update} in {describe(conninfo)}", remedy=_REMEDY),
        ):
            connection.execute(sql.SQL("ALTER EXTENSION {} UPDATE").format(sql.Identifier(update.name)))
    return updates
