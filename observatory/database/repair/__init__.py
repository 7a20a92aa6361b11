"""Repairs the ledger where it and the files cannot agree by themselves.

Owns the plan of a repair, its lock and its transaction; `actions` has the rules of each action, `rows` the statements.
Runs no statement of a file.
"""

from __future__ import annotations

from pathlib import Path

import psycopg

from observatory.database.advisory_locks import MIGRATION_LOCK, session_lock
from observatory.database.connection import connect, describe
from observatory.database.error_translation import translate_errors
from observatory.database.errors import RepairRefusedError
from observatory.database.migration_session import MIGRATION_SETTINGS, server_edition, session
from observatory.database.migrations import ledger
from observatory.database.repair.actions import Prepared, Repair, RepairAction, Situation, prepare

__all__ = ["Repair", "RepairAction", "plan_repair", "repair_ledger"]

LOCK_WAIT_S = 60.0
_READ_ONLY = {"default_transaction_read_only": "on"}


def plan_repair(conninfo: str, *, migrations: Path, action: RepairAction, file: str) -> Repair:
    """Return what `repair_ledger` would change. Reads only and takes no lock.

    Args:
        conninfo: as the role that owns the schema.
        migrations: directory of the files.
        action: see `RepairAction`.
        file: name of the migration's file, `007_mine.sql`.

    Raises:
        RepairRefusedError: the action does not fit the state of the ledger or of the files.
        MigrationFileError: an unusable file.
        UnreachableError: the connection failed or broke.
        UnsuitableServerError: a standby, or no TimescaleDB.
    """
    with session(conninfo, purpose="plan a repair", settings=_READ_ONLY) as (connection, edition):
        return prepare(Situation.read(connection, migrations, edition), action, file).repair


def repair_ledger(
    conninfo: str,
    *,
    migrations: Path,
    action: RepairAction,
    file: str,
    reason: str,
    actor: str,
    deployment_id: str,
    planned: Repair | None = None,
    lock_wait_s: float = LOCK_WAIT_S,
) -> Repair:
    """Change the ledger's row of one file, under the migration lock and in one transaction.

    Args:
        conninfo: a direct connection as the role that owns the schema.
        migrations: directory of the files.
        action: see `RepairAction`.
        file: name of the migration's file, `007_mine.sql`.
        reason: why; the row keeps it.
        actor: who repairs; the row keeps it.
        deployment_id: written to the ledger where a row is added.
        planned: the plan that was confirmed; a repair that differs is refused. None: any plan.
        lock_wait_s: seconds to wait for a deployment.

    Raises:
        RepairRefusedError, LockHeldError: see `plan_repair`; nothing was changed.
        DatabaseError: see `plan_repair`.
    """
    if not reason.strip():
        raise RepairRefusedError(f"{file}: a repair needs a reason. State one")
    with (
        connect(conninfo, purpose=f"repair {deployment_id}", settings=MIGRATION_SETTINGS) as connection,
        translate_errors(describe(conninfo)),
        session_lock(connection, MIGRATION_LOCK, wait_s=lock_wait_s),
    ):
        edition = server_edition(connection, conninfo)
        prepared = prepare(Situation.read(connection, migrations, edition), action, file)
        if planned and planned != prepared.repair:
            raise RepairRefusedError(f"{file}: the ledger or the file changed meanwhile. Print the plan again")
        author = ledger.Author(actor=actor, deployment_id=deployment_id, edition=edition)
        _perform(connection, prepared, author, f"{action} by {actor}: {' '.join(reason.split())}")
    return prepared.repair


def _perform(connection: psycopg.Connection, prepared: Prepared, author: ledger.Author, note: str) -> None:
    ledger.create(connection)
    prepared.before(connection)
    with connection.transaction():
        prepared.change(connection, author, note)
