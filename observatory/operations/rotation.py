"""Rotating passwords without a failed request: each role's idle login gets a new one and takes over from the other.

    document: the idle login is in use, under its next password   →  up
    wait until no session uses the other login
    document: the other login has its next password, which nobody knows  →  up

The document is written before each `up`, so that a rotation that was killed is carried on by the next `up` as far as it
had been decided, and ended by the next rotation. Both logins work all the time until the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from observatory.database import connect
from observatory.database.connection import with_database
from observatory.documents.logins import PAIRED_ROLES, AccessDocument, PairedRole, login, other, utc_now
from observatory.engines import embedded as engine
from observatory.files.locks import exclusive
from observatory.operations.bootstrap import OperationError, state_options
from observatory.operations.engine_choice import EngineChoice
from observatory.operations.journal import take_down
from observatory.operations.locks import no_deployment_meanwhile
from observatory.operations.stack import up
from observatory.operations.state import outputs
from observatory.progress import Reporter, silent, task
from observatory.settings import StackSettings, load_file
from observatory.workspace import Workspace

PATIENCE_S = 60.0  # for clients to leave the old login; the storage service takes 2 s, a request in work 10 s
POLL_S = 0.5
PSQL = "/usr/lib/postgresql/17/bin/psql"


@dataclass(frozen=True, kw_only=True)
class RotatedRole:
    """What became of a role: the login in use now, and whether the one before is of no use any more."""

    role: PairedRole
    login: str
    retired: bool


def rotate_passwords(
    workspace: Workspace,
    *,
    roles: Iterable[PairedRole] = PAIRED_ROLES,
    patience_s: float = PATIENCE_S,
    choice: EngineChoice = "auto",
    report: Reporter = silent,
) -> list[RotatedRole]:
    """Give each role's logins new passwords, one after the other.

    A login that is still used when `patience_s` is over keeps its password; the next rotation ends that first.

    Raises:
        OperationError: the stack is not up, or not one of this machine.
        LockHeldError: a deployment is under way; nothing was changed.
        engine.EngineError: an `up` failed; run it or the rotation again.
    """
    settings = load_file(workspace.config_file)
    _refuse_others(workspace, settings)
    roles = tuple(roles)
    with exclusive(workspace.access.rotation_lock), no_deployment_meanwhile(workspace):
        begun = _changed(
            workspace, [role for role in roles if not _document(workspace).pair(role).retiring], "switched"
        )
        with task(report, f"the other login of {', '.join(roles)} takes over"):
            up(workspace, choice=choice, report=report)
        with task(report, "every client leaves the login before"):
            free = _left(workspace, settings, begun, roles, patience_s)
        _changed(workspace, free, "retired")
        with task(report, f"new passwords for {', '.join(free) or 'nobody'}"):
            up(workspace, choice=choice, report=report)
    done = _document(workspace)
    rotated = [
        RotatedRole(role=role, login=done.active_login(role), retired=not done.pair(role).retiring) for role in roles
    ]
    take_down(workspace, "passwords-rotated", roles=[asdict(each) for each in rotated])
    return rotated


def _refuse_others(workspace: Workspace, settings: StackSettings) -> None:
    if settings.platform != "local":
        raise OperationError(
            f"the stack {workspace.stack!r} is on {settings.platform}, whose clients' logins cannot be seen from here; "
            "nothing was changed"
        )
    if not engine.resources(state_options(workspace)) or workspace.access.read() is None:
        raise OperationError(f"the stack {workspace.stack!r} is not up; `observatory up` makes its logins")


def _document(workspace: Workspace) -> AccessDocument:
    document = workspace.access.read()
    if document is None:
        raise OperationError(f"{workspace.access.path} is gone; `observatory up` makes it out of the stack's state")
    return document


def _changed(workspace: Workspace, roles: Iterable[PairedRole], how: str) -> AccessDocument:
    """Write the document with these roles' pairs `switched` or `retired`, and return it."""
    current, now = _document(workspace), utc_now()
    document = current
    for role in roles:
        pair = document.pair(role)
        document = document.with_pair(role, pair.switched(now) if how == "switched" else pair.retired(now))
    return workspace.access.compare_and_set(current, document)


def _left(
    workspace: Workspace,
    settings: StackSettings,
    document: AccessDocument,
    roles: tuple[PairedRole, ...],
    patience_s: float,
) -> list[PairedRole]:
    """Return the roles whose other login nobody uses, waiting for it."""
    old = {login(role, other(document.pair(role).active)): role for role in roles}
    deadline = time.monotonic() + patience_s
    while (used := _used(workspace, settings)) & old.keys() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return [role for name, role in old.items() if name not in used]


def _used(workspace: Workspace, settings: StackSettings) -> set[str]:
    """Return the logins of pgBouncer's clients, and of PostgreSQL's that come past it."""
    port = str(settings.ports.pgbouncer)
    console = [PSQL, "-h", "/srv/run", "-p", port, "-U", "pgbouncer", "-d", "pgbouncer", "-At", "-c", "SHOW CLIENTS"]
    clients = {line.split("|")[1] for line in workspace.sandbox.run(console).stdout.splitlines()}
    admin_url = with_database(str(outputs(workspace)["admin_database_url"]), settings.database.name)
    with connect(admin_url, purpose="rotate passwords") as admin:
        # What is not pgBouncer's is a person's: an administrator's sessions are never pooled.
        rows = admin.execute("SELECT DISTINCT usename::text FROM pg_stat_activity WHERE usename LIKE 'admin\\_%'")
        return clients | {row[0] for row in rows.fetchall()}
