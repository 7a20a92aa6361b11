"""Schedules the jobs that run inside the database: copies `observatory.jobs`, which migrations fill, to pg_cron.

Owns only jobs with the prefix below. Migrations define the jobs; the server's configuration and `ensure_database` load
pg_cron. Separate from `deploy`, because pg_cron runs in one database of a server only: a restored copy or a test
database gets the schema without its jobs.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg.rows import class_row

from observatory.database.advisory_locks import MIGRATION_LOCK, session_lock
from observatory.database.connection import connect, describe
from observatory.database.error_translation import translate_errors
from observatory.database.errors import UnsuitableServerError

PREFIX = "observatory: "  # of names in pg_cron; jobs without it are left alone
LOCK_WAIT_S = 60.0

_TABLES_EXIST = "SELECT to_regclass('observatory.jobs') IS NOT NULL, to_regclass('cron.job') IS NOT NULL"
_DEFINED = "SELECT name, schedule, command FROM observatory.jobs ORDER BY name"
_SCHEDULED = """
    SELECT substr(jobname, length(%(prefix)s) + 1) AS name, schedule, command FROM cron.job
    WHERE starts_with(jobname, %(prefix)s) AND database = current_database() AND username = current_user
    ORDER BY name
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A statement that runs on a schedule.

    Attributes:
        name: unique in the database.
        schedule: in pg_cron's format: five cron fields in UTC, or `30 seconds`.
        command: the SQL.
    """

    name: str
    schedule: str
    command: str


def schedule_jobs(conninfo: str) -> tuple[Job, ...]:
    """Schedule the jobs of the schema, and unschedule earlier ones that it no longer has.

    Leaves a job alone that is already scheduled in the same way.

    Args:
        conninfo: a direct connection as the role that owns the schema; jobs run as that role.

    Returns:
        The scheduled jobs, by name.

    Raises:
        UnsuitableServerError: there are jobs, but this database has no pg_cron, so they would never run.
        LockHeldError: a deployment is running.
        StatementFailedError: pg_cron rejected a job, for example its schedule; nothing was changed.
        UnreachableError: the connection failed or broke.
    """
    with (
        connect(conninfo, purpose="schedule jobs") as connection,
        translate_errors(f"jobs of {describe(conninfo)}"),
        session_lock(connection, MIGRATION_LOCK, wait_s=LOCK_WAIT_S),
        connection.transaction(),
    ):
        has_table, has_pg_cron = connection.execute(_TABLES_EXIST).fetchone() or (False, False)
        defined = _jobs(connection, _DEFINED) if has_table else ()
        if has_pg_cron:
            _synchronise(connection, defined, scheduled=_jobs(connection, _SCHEDULED))
        elif defined:
            raise UnsuitableServerError(
                f"{describe(conninfo)} has {len(defined)} jobs, but no pg_cron to run them. Load it with "
                "shared_preload_libraries, set cron.database_name to this database, then run CREATE EXTENSION "
                "pg_cron as superuser"
            )
    return defined


def _jobs(connection: psycopg.Connection, query: str) -> tuple[Job, ...]:
    with connection.cursor(row_factory=class_row(Job)) as cursor:
        return tuple(cursor.execute(query.encode(), {"prefix": PREFIX}).fetchall())


def _synchronise(connection: psycopg.Connection, defined: tuple[Job, ...], *, scheduled: tuple[Job, ...]) -> None:
    names = {job.name for job in defined}
    for job in scheduled:
        if job.name not in names:
            connection.execute("SELECT cron.unschedule(%s)", [PREFIX + job.name])
    for job in defined:
        if job not in scheduled:
            connection.execute("SELECT cron.schedule(%s, %s, %s)", [PREFIX + job.name, job.schedule, job.command])
