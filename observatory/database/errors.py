"""What can go wrong with the database: few classes, each message names the cause, the place and the remedy.

Owns the error classes alone, so that whoever only tells them apart imports no driver; what makes them out of psycopg's
exceptions is `observatory.database.error_translation`.
"""

from observatory.errors import REFUSED, ObservatoryError


class DatabaseError(ObservatoryError):
    """Base of every error that `observatory.database` raises on purpose."""


class MigrationFileError(DatabaseError):
    """A migration file that cannot be used; the message starts with `file:line:column`."""

    exit_code = REFUSED


class MigrationHistoryError(DatabaseError):
    """The files and the ledger contradict each other; nothing was changed."""

    exit_code = REFUSED


class ContractRefusedError(DatabaseError):
    """A migration would take away what a release needs that a fleet runs or falls back to; nothing was changed."""

    exit_code = REFUSED


class StatementFailedError(DatabaseError):
    """PostgreSQL refused a statement; the message starts with `file:line:column`."""


class LockHeldError(DatabaseError):
    """Another deployment holds the migration lock; nothing was changed."""

    exit_code = REFUSED


class LockTimeoutError(DatabaseError):
    """Other sessions kept the locks that a migration needs; the message names them."""


class BackupFailedError(DatabaseError):
    """No backup could be made, or the one that was made cannot be verified; nothing was migrated."""


class UnreachableError(DatabaseError):
    """No connection, no login, or the connection broke."""


class UnsuitableServerError(DatabaseError):
    """The server cannot take migrations: a standby, read-only, or without TimescaleDB."""


class EditionRefusedError(DatabaseError):
    """A database cannot be moved to an edition of TimescaleDB as it is; nothing was changed."""

    exit_code = REFUSED


class VerificationFailedError(DatabaseError):
    """After a deployment the database is not what its migrations make; the message says in what."""


class SampleError(DatabaseError):
    """A sample that must not or cannot be made; nothing was changed."""

    exit_code = REFUSED
