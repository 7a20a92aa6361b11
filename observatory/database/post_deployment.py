"""Completes a deployment of the schema: schedules jobs, grants privileges, verifies the database."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from observatory.database.connection import connect, describe
from observatory.database.error_translation import translate_errors
from observatory.database.migration_grants import read_grants
from observatory.database.pg_cron_jobs import schedule_jobs
from observatory.database.roles.privileges import Profile, grant_access
from observatory.database.throwaway_server import Throwaway
from observatory.database.verification import Verification, verify


def finish_deployment(
    conninfo: str,
    *,
    migrations: Path,
    target: int | None = None,
    roles: Mapping[str, Profile],
    service_conninfo: str | None,
    throwaway: Throwaway | None = None,
) -> Verification:
    """Schedule the schema's jobs, grant the roles their privileges, and verify the database.

    Call it after every deployment, also after one that applied nothing.

    Args:
        conninfo: as the role that owns the schema.
        migrations: directory of the files.
        target: expected version of the database; None is the newest file's.
        roles: see `grant_access`.
        service_conninfo: connection string of the service's login; see `verify`.
        throwaway: starts a server for own migrations; see `verify`.

    Returns:
        The checks. A failed check does not raise.

    Raises:
        UnsuitableServerError: there are jobs, but pg_cron is missing.
        LockHeldError: another deployment is running.
        StatementFailedError: PostgreSQL rejected a statement.
        UnreachableError: the connection failed or broke.
    """
    schedule_jobs(conninfo)
    with (
        connect(conninfo, purpose="grant access") as connection,
        translate_errors(f"privileges of {describe(conninfo)}"),
    ):
        grants = read_grants(connection, roles)
    grant_access(conninfo, roles=roles, grants=grants)
    return verify(
        conninfo,
        migrations=migrations,
        target=target,
        roles=roles,
        service_conninfo=service_conninfo,
        throwaway=throwaway,
    )
