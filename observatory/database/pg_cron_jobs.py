"""The jobs that run inside the database: brings pg_cron in line with `observatory.jobs`, which migrations fill.

Owns which of pg_cron's jobs are ours. What a job does is a migration's; loading pg_cron is the server's configuration
and `ensure_database`. Apart from `deploy`, because pg_cron runs in one database of a server only: a restored copy or a
test database gets the schema without its jobs.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg.rows import class_row

from observatory.database.advisory_locks import MIGRATION_LOCK, session_lock
from observatory.database.connection import connect, describe
from observatory.database.error_translation import translate_errors
from observatory.database.errors import UnsuitableServerError

PREFIX = "observatory: "  # in pg_cron's names; jobs without it are somebody else's
LOCK_WAIT_S = 60.0

_EXIST = "SELECT to_regclass('observatory.jobs') IS NOT NULL, to_regclass('cron.job') IS NOT NULL"
_WANTED = "SELECT name, schedule, command FROM observatory.jobs ORDER BY name"
_SCHEDULED = """
    SELECT substr(jobname, length(%(prefix)s) + 1) AS name, schedule, command FROM cron.job
    WHERE starts_with(jobname, %(prefix)s) AND database = current_database() AND username = current_user
    ORDER BY name
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A statement that runs again and again.

    Attributes:
        name: unique in the database.
        schedule: as pg_cron reads it: five cron fields in UTC, or `30 seconds`.
        command: the SQL.
    """

    name: str
    schedule: str
    command: str


def schedule_jobs(conninfo: str) -> tuple[Job, ...]:
    """Schedule the jobs that the schema asks for, and no others of ours; what fits already is left alone.

    Args:
        conninfo: a direct connection as the role that owns the schema; jobs run as that role.

    Returns:
        The jobs that are scheduled now, by name.

    Raises:
        UnsuitableServerError: there are jobs, but pg_cron is not in this database: they would never run.
        LockHeldError: a deployment runs.
        StatementFailedError: pg_cron refused, for example an unreadable schedule; nothing was changed.
        UnreachableError: no connection, or it broke.
    """
    with (
        connect(conninfo, purpose="schedule jobs") as connection,
        translate_errors(f"jobs of {describe(conninfo)}"),
        session_lock(connection, MIGRATION_LOCK, wait_s=LOCK_WAIT_S),
        connection.transaction(),
    ):
        has_table, has_pg_cron = connection.execute(_EXIST).fetchone() or (False, False)
        wanted = _jobs(connection, _WANTED) if has_table else ()
        if has_pg_cron:
            _synchronise(connection, wanted, scheduled=_jobs(connection, _SCHEDULED))
        elif wanted:
            raise UnsuitableServerError(
                f"{describe(conninfo)} has {len(wanted)} jobs to run, but no pg_cron. Load it with "
                "shared_preload_libraries, name this database in cron.database_name, then run `ensure_database`"
            )
    return wanted


def _jobs(connection: psycopg.Connection, query: str) -> tuple[Job, ...]:
    with connection.cursor(row_factory=class_row(Job)) as cursor:
        return tuple(cursor.execute(query.encode(), {"prefix": PREFIX}).fetchall())


def _synchronise(connection: psycopg.Connection, wanted: tuple[Job, ...], *, scheduled: tuple[Job, ...]) -> None:
    names = {job.name for job in wanted}
    for job in scheduled:
        if job.name not in names:
            connection.execute("SELECT cron.unschedule(%s)", [PREFIX + job.name])
    for job in wanted:
        if job not in scheduled:
            connection.execute("SELECT cron.schedule(%s, %s, %s)", [PREFIX + job.name, job.schedule, job.command])
