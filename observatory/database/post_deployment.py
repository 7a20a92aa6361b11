"""What follows every deployment of the schema, needed or not: its jobs, its privileges, and their verification."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from observatory.database.pg_cron_jobs import schedule_jobs
from observatory.database.roles.privileges import Profile, grant_access
from observatory.database.verification import Verification, verify


def finish_deployment(
    conninfo: str,
    *,
    migrations: Path,
    target: int | None = None,
    roles: Mapping[str, Profile],
    service_conninfo: str | None,
) -> Verification:
    """Schedule the schema's jobs, grant the roles their privileges, and verify the database.

    Args:
        conninfo: as the role that owns the schema.
        migrations: directory of the files.
        target: version that the database should have; None is the newest file's.
        roles: see `grant_access`.
        service_conninfo: as the service's login; see `verify`.

    Returns:
        The verdicts; a database that is not as it should be is no exception.

    Raises:
        UnsuitableServerError: there are jobs, but no pg_cron to run them.
        LockHeldError: another deployment runs.
        StatementFailedError: PostgreSQL refused.
        UnreachableError: no connection, or it broke.
    """
    schedule_jobs(conninfo)
    grant_access(conninfo, roles=roles)
    return verify(conninfo, migrations=migrations, target=target, roles=roles, service_conninfo=service_conninfo)
