"""The databases that migrations are deployed to: a stack's, and one that is given by its URL and has no stack.

Owns what differs between them: backups, fleets, logins, the audit and the deployment lock. Both have the same
operations in `observatory.operations.database`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import observatory
from observatory import database
from observatory.database.migrations.numbering import version_in
from observatory.delivery.schema_requirements import schema_needs
from observatory.errors import WRONG_USAGE, ObservatoryError
from observatory.operations.delivery_journal import audited, audited_once_begun, record_event
from observatory.operations.deployment_lock import GONE_SECONDS, deployment_lock, unshared_deployment_lock
from observatory.operations.dropped_database import check_not_dropped
from observatory.platforms import open_platform
from observatory.platforms.errors import StackNotUpError
from observatory.platforms.platform import Platform
from observatory.platforms.poolers import reconnect_poolers
from observatory.platforms.rehearsal import rehearsal_server
from observatory.platforms.stack_state import declared_schema, outputs
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.database import Backup, Profile, SchemaRequirement, Throwaway


class DatabaseUrlError(ObservatoryError):
    """The URL of a database is empty or malformed."""

    exit_code = WRONG_USAGE


class SecretInUrlError(ObservatoryError):
    """The URL of a database contains a password, which other users of the machine could read."""

    exit_code = WRONG_USAGE


@dataclass(frozen=True, kw_only=True)
class DatabaseTarget:
    """The database of a stack's migrations, as its last `up` declared it.

    Attributes:
        conninfo: connection string of the role that owns the schema.
        roles: the profiles of the roles that get privileges on what migrations create.
        version: the target version of the schema, which a rollback of the database sets; None is the newest.
    """

    conninfo: str
    roles: Mapping[str, Profile]
    version: int | None


def database_target(workspace: Workspace) -> DatabaseTarget:
    """Return the database of the stack's migrations.

    Raises:
        StackNotUpError: the stack was never up.
    """
    return _target(open_platform(workspace))


def _target(platform: Platform) -> DatabaseTarget:
    found = declared_schema(platform)
    if found is None:
        raise StackNotUpError(platform.workspace.stack)
    rollout = platform.rollout_store.read()
    return DatabaseTarget(
        conninfo=found["conninfo"],
        roles=found.get("roles", {}),
        version=rollout.schema_target if rollout else None,
    )


def schema_requirements(platform: Platform) -> list[SchemaRequirement]:
    """Return the schema versions that the releases of both fleets work with, also those kept for a rollback."""
    rollout = platform.rollout_store.read()
    needs = schema_needs(rollout, platform.release_store) if rollout else ()
    return [database.SchemaRequirement(*need) for need in needs]


@dataclass(frozen=True, kw_only=True)
class StackDatabase:
    """The database of a stack; see `UrlDatabase` for the other kind."""

    workspace: Workspace

    has_stack: ClassVar[bool] = True

    @property
    def migrations(self) -> Path:
        """The directory of the migration files."""
        return self.workspace.migrations

    @cached_property
    def _platform(self) -> Platform:
        return open_platform(self.workspace)

    def target(self) -> DatabaseTarget:
        """Return connection string, roles and target version; raises StackNotUpError."""
        return _target(self._platform)

    def backup(self) -> Backup | None:
        """Return what makes the backup before migrations."""
        return self._platform.migration_backup()

    def requirements(self) -> list[SchemaRequirement]:
        """Return the schema versions that the fleets' releases work with."""
        return schema_requirements(self._platform)

    def throwaway(self) -> Throwaway | None:
        """Return what starts the server of a rehearsal."""
        return rehearsal_server(self.workspace.sandbox.rootfs)

    def check_there(self) -> None:
        """Check that the database was not dropped or emptied; raises DatabaseDroppedError."""
        check_not_dropped(self._platform)

    def service_conninfo(self) -> str:
        """Return the connection string of the service's login."""
        return str(outputs(self._platform, show_secrets=True)["database_url"])

    def locked(self, command: str) -> AbstractContextManager[Any]:
        """Return the deployment lock of the stack."""
        return deployment_lock(self.workspace, self.target().conninfo, command=command, wait_s=GONE_SECONDS)

    def audited(self, what: str, **details: Any) -> AbstractContextManager[None]:
        """Return a block whose start and failure are recorded."""
        return audited(self.workspace, what, **details)

    def audited_once_begun(self, what: str, **details: Any) -> AbstractContextManager[Callable[[], None]]:
        """Return a block whose failure is recorded, and whose start is at the first call of the function."""
        return audited_once_begun(self.workspace, what, **details)

    def end_hold(self) -> None:
        """Let `up` apply again what a rollback of the database has undone, as far as it was deployed since."""
        store = self._platform.rollout_store
        document = store.read()
        if document is None or document.schema_target is None:
            return
        schema = database.status(self.target().conninfo, migrations=self.migrations)
        pending = [version_in(name) for name in schema.pending if not name.startswith("R__")]
        applied = [entry.version for entry in schema.applied if entry.version < min(pending, default=0)]
        target = max(applied, default=0) if pending else None
        store.compare_and_set(document, document.model_copy(update={"schema_target": target}))

    def reconnect_poolers(self) -> tuple[str, ...]:
        """Let the stack's pgBouncers replace their connections; return a warning for each one that did not."""
        return reconnect_poolers(self._platform)

    def record_event(self, event: str, **details: Any) -> None:
        """Record an event in the journal and the audit."""
        record_event(self.workspace, event, **details)


@dataclass(frozen=True, kw_only=True)
class UrlDatabase:
    """A database without a stack: no backup, no fleets and no audit; the ledger's rows are the record.

    Make it with `url_database`.

    Attributes:
        url: connection string or URI of the role that owns the schema; has no password.
        migrations: directory of the migration files.
        rootfs: root filesystem for a rehearsal; it need not exist.
    """

    url: str
    migrations: Path
    rootfs: Path

    has_stack: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse an empty or malformed URL, which an unset variable makes, and a password."""
        try:
            has_password = database.has_password(self.url)
        except database.UnreachableError as error:
            raise DatabaseUrlError(str(error)) from error
        if not self.url.strip():
            raise DatabaseUrlError(
                "The URL of the database is empty.", remedy="Write --database-url postgresql://user@host:port/database."
            )
        if has_password:
            raise SecretInUrlError(
                "The URL of the database contains a password, which other users of this machine can read in the list "
                "of processes.",
                remedy="Leave it out. Write it to ~/.pgpass (or the file of PGPASSFILE) with mode 0600 as the line "
                "host:port:database:user:password, or set PGPASSWORD.",
            )

    def target(self) -> DatabaseTarget:
        """Return the connection string; the newest migration is the target, and no role gets privileges."""
        return DatabaseTarget(conninfo=self.url, roles={}, version=None)

    def backup(self) -> None:
        """Return None: the platform has no backup of this database."""

    def requirements(self) -> list[SchemaRequirement]:
        """Return none: no fleet is known to use this database."""
        return []

    def throwaway(self) -> Throwaway | None:
        """Return what starts the server of a rehearsal; None where this machine has none."""
        return rehearsal_server(self.rootfs) if self.rootfs.is_dir() else None

    def check_there(self) -> None:
        """Do nothing: an empty database without a stack gets every migration."""

    def service_conninfo(self) -> str:
        """Return the URL: its login reads and writes the marked rows of the verification."""
        return self.url

    @contextmanager
    def locked(self, command: str) -> Iterator[None]:
        """Hold the deployment lock, which a stack of the same database also takes."""
        with unshared_deployment_lock(self.url, command=command, wait_s=GONE_SECONDS):
            yield

    def audited(self, _what: str, **_details: Any) -> AbstractContextManager[None]:
        """Return a block that records nothing."""
        return nullcontext()

    def audited_once_begun(self, _what: str, **_details: Any) -> AbstractContextManager[Callable[[], None]]:
        """Return a block that records nothing."""
        return nullcontext(lambda: None)

    def end_hold(self) -> None:
        """Do nothing: no rollback of this database is known."""

    def reconnect_poolers(self) -> tuple[str, ...]:
        """Return no warning: no pooler of this database is known."""
        return ()

    def record_event(self, event: str, **details: Any) -> None:
        """Record nothing."""


MigrationTarget = StackDatabase | UrlDatabase


def url_database(url: str, *, root: Path | None = None) -> UrlDatabase:
    """Return the database of a URL, for the operations that accept a database without a stack.

    Args:
        url: connection string or URI, direct and not through a transaction pooler, as the role that owns the schema.
        root: the checkout with the migrations, by default the one that contains this library.

    Raises:
        DatabaseUrlError: the URL is empty or malformed.
        SecretInUrlError: the URL contains a password.
    """
    root = root or Path(observatory.__file__).resolve().parent.parent
    checkout = Workspace(root=root, stack="local")
    return UrlDatabase(url=url, migrations=checkout.migrations, rootfs=checkout.rootfs)


def migration_target(where: Workspace | UrlDatabase) -> MigrationTarget:
    """Return the database of a stack, or the given one."""
    return where if isinstance(where, UrlDatabase) else StackDatabase(workspace=where)
