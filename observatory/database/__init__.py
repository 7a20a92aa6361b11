"""The database as operators see it: create it, bring its schema up, say where it stands. psycopg only, never Pulumi."""

from observatory.database.deployment import Deployment, Plan, SchemaStatus, deploy, plan, status
from observatory.database.errors import (
    DatabaseError,
    LockHeldError,
    LockTimeoutError,
    MigrationFailedError,
    MigrationFileError,
    MigrationHistoryError,
    UnreachableError,
    UnsuitableServerError,
)
from observatory.database.files import Edition, Migration, load_migrations

__all__ = [
    "DatabaseError",
    "Deployment",
    "Edition",
    "LockHeldError",
    "LockTimeoutError",
    "Migration",
    "MigrationFailedError",
    "MigrationFileError",
    "MigrationHistoryError",
    "Plan",
    "SchemaStatus",
    "UnreachableError",
    "UnsuitableServerError",
    "deploy",
    "load_migrations",
    "plan",
    "status",
]
