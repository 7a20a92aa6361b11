"""A stack's database that was dropped, renamed or emptied while its server runs on.

`up` and `deploy database` do not fill an empty one: a database that takes requests would hide the loss. A rollback
replaces it by the one of before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psycopg
from psycopg.conninfo import conninfo_to_dict

from observatory.backups.rollback.errors import RollbackRefusedError
from observatory.database import UnreachableError
from observatory.database.connection import with_database
from observatory.database.errors import DatabaseDroppedError, dropped, renaming
from observatory.database.presence import SERVER_DATABASE, Presence, databases, others_with_ledger, presence_of
from observatory.platforms.errors import OperationError
from observatory.platforms.platform import Platform
from observatory.platforms.stack_state import declared_schema, outputs
from observatory.progress import Phase, Progress, Reporter, tell


def check_not_dropped(platform: Platform) -> None:
    """Check that a running server has the database of a stack that was up, with its migrations.

    Nothing is checked where no rollback could bring it back, and where the server does not respond.

    Raises:
        DatabaseDroppedError: it is gone, or has no migrations any more.
    """
    if platform.unsupported("rollback --method database") or not _was_up(platform):
        return
    name, server = declared_name(platform), _server(platform)
    with suppress(UnreachableError, psycopg.OperationalError):
        found = presence_of(server, name)
        if found is not Presence.WHOLE:
            others = others_with_ledger(server, name).values()
            raise DatabaseDroppedError(name, others=others, empty=found is Presence.EMPTIED)


def declared_name(platform: Platform) -> str:
    """Return the name of the stack's database as its last `up` declared it; that of the settings before the first."""
    declared = declared_schema(platform)
    name = conninfo_to_dict(declared["conninfo"]).get("dbname") if declared else None
    return str(name or platform.settings.database.name)


@dataclass(frozen=True, kw_only=True)
class LiveDatabase:
    """The database that a rollback replaces.

    Attributes:
        name: of the stack's database.
        server: connection string of the superuser to the running server.
        presence: what the server has of it.
    """

    name: str
    server: str
    presence: Presence

    @property
    def lost(self) -> bool:
        """Whether the database was dropped, renamed or emptied: what it had is not known."""
        return self.presence is not Presence.WHOLE

    @property
    def conninfo(self) -> str:
        """The connection string of the superuser: to the server's own database where the stack's does not exist."""
        return with_database(self.server, SERVER_DATABASE if self.presence is Presence.DROPPED else self.name)

    def report(self, report: Reporter) -> None:
        """Report a database that is lost, and those that may be the renamed one."""
        if self.lost:
            text = f"{self._found}.{self._renaming(*self._others.values())}"
            tell(report, Progress(task=text, phase=Phase.WARNED))

    def check_not_renamed(self, restored: str) -> None:
        """Check that no other database of the live server has data that a rollback would take away unseen.

        That is one with a ledger of migrations that the restored server does not have under its name.

        Args:
            restored: connection string of the restored server's superuser.

        Raises:
            RollbackRefusedError: there is one.
        """
        if self.lost:
            then = databases(restored)
            self._refuse(name for oid, name in self._others.items() if then.get(oid) != name)

    def check_not_renamed_since(self, backup: Mapping[int, str]) -> None:
        """Check, before anything is restored, that no other database had the name of the stack's when it was backed up.

        Args:
            backup: the names of the databases in the backup, by their object identifiers.

        Raises:
            RollbackRefusedError: there is one.
        """
        if self.lost:
            self._refuse(name for oid, name in self._others.items() if backup.get(oid) == self.name)

    @property
    def _found(self) -> str:
        return dropped(self.name, empty=self.presence is Presence.EMPTIED)

    @property
    def _others(self) -> dict[int, str]:
        return others_with_ledger(self.server, self.name)

    def _refuse(self, removed: Iterable[str]) -> None:
        if others := tuple(removed):
            raise RollbackRefusedError(
                f"{self._found}, and a rollback would remove {', '.join(others)}; nothing was changed",
                remedy=f"{self._renaming(*others).strip()}. Or drop it, if nothing of it is needed.",
            )

    def _renaming(self, *others: str) -> str:
        return renaming(self.name, others, empty=self.presence is Presence.EMPTIED)


def live_database(platform: Platform) -> LiveDatabase:
    """Return the database of a stack whose server runs.

    Raises:
        UnreachableError: the server does not respond.
    """
    server, name = _server(platform), declared_name(platform)
    return LiveDatabase(name=name, server=server, presence=presence_of(server, name))


def check_name(platform: Platform) -> None:
    """Check that the settings do not have another name for the database than the stack, which keeps its name.

    Raises:
        OperationError: they do.
    """
    name, declared = platform.settings.database.name, declared_name(platform)
    if name != declared:
        raise OperationError(
            f"the setting database.name is {name!r}, and the stack's database is {declared!r}, which keeps its "
            "name; nothing was changed",
            remedy=f"Set it to {declared!r} again. Only a new stack can have another name.",
        )


def _was_up(platform: Platform) -> bool:
    """Return whether an `up` of the stack has come to its end; a first one may have ended before the migrations."""
    finished = platform.workspace.demonstrated.exists() and "admin_database_url" in outputs(platform)
    return finished and declared_schema(platform) is not None


def _server(platform: Platform) -> str:
    return str(outputs(platform)["admin_database_url"])
