"""Errors of the database. Each message says what failed, where, and what to do.

Holds only the classes, so that a module that catches them does not load psycopg.
`observatory.database.error_translation` makes them from psycopg's exceptions.
"""

from collections.abc import Iterable

from observatory.errors import REFUSED, WRONG_USAGE, ObservatoryError


class DatabaseError(ObservatoryError):
    """Base of every error that `observatory.database` raises on purpose."""


class MigrationFileError(DatabaseError):
    """A migration file is unusable; the message starts with `file:line:column`."""

    exit_code = REFUSED


class MigrationNameError(DatabaseError):
    """The name of a new migration is unusable; no file was written."""

    exit_code = WRONG_USAGE


class ObjectsInTheWayError(DatabaseError):
    """A migration would create what the database already has; nothing was changed."""

    exit_code = REFUSED


class BaselineRefusedError(DatabaseError):
    """The database cannot be recorded at a version: it has a ledger, or its objects differ; nothing was changed."""

    exit_code = REFUSED


class MigrationHistoryError(DatabaseError):
    """The files and the ledger contradict each other; nothing was changed."""

    exit_code = REFUSED


class RepairRefusedError(DatabaseError):
    """A repair does not fit the state of the ledger or of the files; nothing was changed."""

    exit_code = REFUSED


class LintRefusedError(DatabaseError):
    """The linter found errors in pending migrations; the message has a line for each; nothing was changed."""

    exit_code = REFUSED


class ContractRefusedError(DatabaseError):
    """A migration would remove what the release of a fleet needs; nothing was changed."""

    exit_code = REFUSED


class StatementFailedError(DatabaseError):
    """PostgreSQL rejected a statement; the message starts with `file:line:column`."""


class LockHeldError(DatabaseError):
    """Another deployment holds the migration lock; nothing was changed."""

    exit_code = REFUSED


class MigrationLockLostError(DatabaseError):
    """The migration lock was lost while a file ran; no further file was applied."""


class LockTimeoutError(DatabaseError):
    """Other sessions held the locks that a migration needs; the message names them."""


class RowsLockedError(DatabaseError):
    """Other sessions held the locks that a verification needs.

    Attributes:
        applications: what each of these sessions calls itself; empty where none is known.
    """

    def __init__(self, message: str, applications: Iterable[str]) -> None:
        super().__init__(message)
        self.applications = frozenset(applications)


class BackupFailedError(DatabaseError):
    """The backup before a migration failed, or its verification did; nothing was migrated."""


class DrillRequiredError(DatabaseError):
    """No restore drill proves that the backups can be restored, and the settings require one; nothing was migrated."""

    exit_code = REFUSED


class UnreachableError(DatabaseError):
    """The server is unreachable, it rejected the login, or the connection broke."""


class PasswordRefusedError(UnreachableError):
    """The server responds, and refuses the password."""


class NoSuchDatabaseError(UnreachableError):
    """The server responds, and has no database of the name, or one whose removal was interrupted."""


class UnsuitableServerError(DatabaseError):
    """The server cannot run migrations: a standby, read-only, or without TimescaleDB."""


class EditionRefusedError(DatabaseError):
    """The database cannot change its edition of TimescaleDB in its present state; nothing was changed."""

    exit_code = REFUSED


class VerificationFailedError(DatabaseError):
    """After a deployment the database differs from its migrations' result; the message lists the differences."""


class SampleError(DatabaseError):
    """A sample is not allowed or not possible; nothing was changed."""

    exit_code = REFUSED


class DatabaseDroppedError(DatabaseError):
    """The database of a stack is gone or empty, though its server runs; it was not created or filled again."""

    exit_code = REFUSED

    def __init__(self, name: str, *, others: Iterable[str] = (), empty: bool = False) -> None:
        """Make the error.

        Args:
            name: of the database.
            others: databases of the server with a ledger of migrations, each of which may be the renamed one.
            empty: whether a database of the name exists.
        """
        super().__init__(
            dropped(name, empty=empty),
            remedy="`observatory rollback --method database --to-time TIME` brings it back as it was at a time before; "
            f"on AWS, pgBackRest on its machine does (docs/backups.md).{renaming(name, others, empty=empty)}",
        )


def dropped(name: str, *, empty: bool) -> str:
    """Return what is wrong with a stack's database that is gone, or of which there is an empty one."""
    if empty:
        return f"the database {name!r} has no ledger of migrations any more: it was dropped, or emptied"
    return f"the database {name!r} does not exist on the running server: it was dropped or renamed"


def renaming(name: str, others: Iterable[str], *, empty: bool) -> str:
    """Return how to give a database its name back, as sentences for each that may be the renamed one.

    Args:
        name: that a stack's database had.
        others: the names of databases.
        empty: whether an empty database has the name.
    """
    first = f'DROP DATABASE "{name}"; ' if empty else ""
    return "".join(
        f" {other!r} has a ledger of migrations: if it is the renamed database, name it back as superuser: "
        f'{first}ALTER DATABASE "{other}" RENAME TO "{name}"'
        for other in others
    )
