"""Whether a database is what its migrations make of it, and whether the service can use it.

Compares what is there with the committed catalogue of the ledger's version; then reads and writes as the service's
role. Owns the verdicts. Changes nothing but a marked row in each table, which it removes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import psycopg

from observatory.database.catalogue import SETTINGS, Catalogue, Object, Objects, load, read_objects
from observatory.database.connection import connect, describe
from observatory.database.deployment import SchemaStatus, status
from observatory.database.error_translation import summary, translate_errors
from observatory.database.errors import DatabaseError
from observatory.database.migrations.files import Edition, read_migrations
from observatory.database.pg_cron_jobs import PREFIX
from observatory.database.roles.privileges import Profile, privileges_of
from observatory.database.verification_rows import marked_rows, read, write_and_read_back

Verdict = Literal["passed", "failed", "unknown"]

# What an operator knows a kind by, in the order of the report.
_KINDS = {
    "table": "tables",
    "column": "columns",
    "view": "views",
    "chunk interval": "chunk intervals",
    "aggregate": "aggregates",
    "policy": "policies",
    "job": "jobs",
    "compression": "compression",
    "index": "indexes",
    "constraint": "constraints",
    "routine": "routines",
}
_SHOWN = 5
_SHOWN_LENGTH, _SHOWN_BEFORE = 160, 40  # characters
_SMOKE_VERSION = 1  # the migration that makes the tables which smoke writes to

_CHUNK_INDEXES = """
    SELECT format('%s.%s: index %s of chunk %s', c.hypertable_schema, c.hypertable_name, x.relname, c.chunk_name)
    FROM timescaledb_information.chunks c
    JOIN pg_index i ON i.indrelid = format('%I.%I', c.chunk_schema, c.chunk_name)::regclass
    JOIN pg_class x ON x.oid = i.indexrelid
    WHERE NOT (i.indisvalid AND i.indisready)
"""
_SCHEDULED = """
    SELECT substr(jobname, length(%(prefix)s) + 1), schedule || ' ' || command FROM cron.job
    WHERE starts_with(jobname, %(prefix)s) AND database = current_database() AND active
"""
_PRIVILEGES = """
    SELECT relation, array_agg(privilege)
    FROM unnest(%(relations)s::text[]) AS relation,
         unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS privilege
    WHERE has_table_privilege(%(role)s, to_regclass(relation), privilege)
    GROUP BY relation
"""
_MAY_NOTE_USE = "SELECT has_column_privilege(%(role)s, 'public.api_keys', 'last_used_at', 'UPDATE')"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what: `columns`, `grants`, `writes as the service`.
        verdict: `unknown` is not good enough: it could not be looked at.
        detail: what is there and what should be, or how much was compared.
    """

    name: str
    verdict: Verdict
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.verdict}: {self.detail}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """All checks of one database.

    Attributes:
        version: of the schema, as the ledger has it.
        edition: of the migrations that made it.
        checks: in the order of the report.
    """

    version: int
    edition: Edition
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Every check passed; an unknown one did not."""
        return all(check.verdict == "passed" for check in self.checks)

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if check.verdict != "passed")


def verify(
    conninfo: str,
    *,
    migrations: Path,
    target: int | None = None,
    roles: Mapping[str, Profile] = MappingProxyType({}),
    service_conninfo: str | None = None,
    catalogue: Callable[[Edition], Catalogue] = load,
) -> Verification:
    """Look at a database after a deployment of its schema, or at any time.

    Args:
        conninfo: a direct connection as the role that owns the schema.
        migrations: directory of the files.
        target: version that the database should have; None is the newest file's.
        roles: whose privileges are looked at, and what each of them is; see `grant_access`.
        service_conninfo: as that login, the way that the service connects, to read and write a marked row; None: that
            is not tried, and unknown.
        catalogue: gives what each version should hold.

    Returns:
        The verdicts; a database that is not as it should be is no exception.

    Raises:
        MigrationFileError: an unusable file.
        MigrationHistoryError: files and ledger contradict each other.
        StatementFailedError: the owner may not look.
        UnreachableError: no connection as the owner.
        UnsuitableServerError: a standby, or no TimescaleDB.
    """
    state = status(conninfo, migrations=migrations)
    expected = catalogue(_edition(state))
    checks = [_version_check(state, target, newest=read_migrations(migrations)[-1].version)]
    if problem := _undescribed(expected, state):
        checks.append(Check(name="objects", verdict="unknown", detail=problem))
    else:
        checks += _look(conninfo, expected.at(state.version), roles)
        if state.version >= _SMOKE_VERSION:
            checks += _use(conninfo, service_conninfo, expected.at(state.version))
    return Verification(version=state.version, edition=expected.edition, checks=tuple(checks))


def _edition(state: SchemaStatus) -> Edition:
    """The edition whose files made the schema; before the first file that differs, the server's."""
    return next((entry.variant for entry in reversed(state.applied) if entry.variant), state.edition)


def _version_check(state: SchemaStatus, target: int | None, *, newest: int) -> Check:
    wanted = newest if target is None else target
    if unfinished := [entry.stem for entry in state.applied if not entry.complete]:
        return Check(name="version", verdict="failed", detail=f"{unfinished[0]} was interrupted. Deploy again")
    if state.version != wanted:
        remedy = "Deploy the migrations that are pending" if state.version < wanted else "Raise the target"
        return Check(name="version", verdict="failed", detail=f"is {state.version}, expected {wanted}. {remedy}")
    return Check(name="version", verdict="passed", detail=f"{state.version}, by the {_edition(state)} edition's files")


def _undescribed(expected: Catalogue, state: SchemaStatus) -> str | None:
    """Why the catalogue says nothing of this database, if it does not."""
    for entry in state.applied:
        if entry.complete and not expected.describes(entry.version, entry.sha256):
            return f"the catalogue was not made with this {entry.stem}.sql. Run `make catalogue` and commit its files"
    return None


def _look(conninfo: str, objects: Objects, roles: Mapping[str, Profile]) -> Iterator[Check]:
    with connect(conninfo, purpose="verify", settings=SETTINGS) as connection, translate_errors(describe(conninfo)):
        found = read_objects(connection)
        for kind, name in _KINDS.items():
            expected = {each: definition for each, definition in objects.items() if each.kind == kind}
            if expected:
                differences = _differences(expected, found)
                if kind == "job":
                    differences += _unscheduled(connection, expected)
                if kind == "index":
                    differences += [f"{row[0]} is invalid" for row in connection.execute(_CHUNK_INDEXES).fetchall()]
                yield _check(name, differences, count=len(expected))
        if roles and objects:
            wrong = [
                each for role, profile in roles.items() for each in _wrong_grants(connection, role, profile, objects)
            ]
            yield _check("grants", wrong, count=len(roles) * len(_relations(objects)))


def _differences(expected: Objects, found: Objects) -> list[str]:
    return [
        f"{each.name} is missing" if each not in found else f"{each.name}: {_difference(found[each], definition)}"
        for each, definition in sorted(expected.items())
        if found.get(each) != definition
    ]


def _difference(found: str, expected: str) -> str:
    """Two definitions, long ones from a little before where they part."""
    first, second = repr(found)[1:-1], repr(expected)[1:-1]
    start = 0
    if max(len(first), len(second)) > _SHOWN_LENGTH:
        pairs = enumerate(zip_longest(first, second))
        start = max(0, next(offset for offset, (old, new) in pairs if old != new) - _SHOWN_BEFORE)
    return f"is {_cut(first, start)}, expected {_cut(second, start)}"


def _cut(text: str, start: int) -> str:
    end = start + _SHOWN_LENGTH
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")


def _unscheduled(connection: psycopg.Connection, jobs: Objects) -> list[str]:
    """Jobs that pg_cron does not run, or not as the schema asks for."""
    if connection.execute("SELECT to_regclass('cron.job') IS NOT NULL").fetchone() != (True,):
        return ["pg_cron is not in this database, so none of them runs. Run `ensure_database`"]
    scheduled: dict[str, str] = dict(connection.execute(_SCHEDULED, {"prefix": PREFIX}).fetchall())
    return [
        f"{job.name} is not scheduled"
        if job.name not in scheduled
        else f"{job.name}: pg_cron's {_difference(scheduled[job.name], definition)}"
        for job, definition in jobs.items()
        if scheduled.get(job.name) != definition
    ]


def _wrong_grants(connection: psycopg.Connection, role: str, profile: Profile, objects: Objects) -> list[str]:
    relations = _relations(objects)
    values = {"role": role, "relations": relations}
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %(role)s", values).fetchone() is None:
        return [f"there is no role {role}"]
    held = {relation: frozenset(names) for relation, names in connection.execute(_PRIVILEGES, values).fetchall()}
    wrong = []
    for relation in relations:
        wanted = privileges_of(profile, *relation.split(".", 1), is_table=Object("table", relation) in objects)
        if (has := held.get(relation, frozenset())) != wanted:
            wrong.append(f"{role} on {relation}: {_listed(has)}, expected {_listed(wanted)}")
    notes_use = profile == "service" and "public.api_keys" in relations
    if notes_use and connection.execute(_MAY_NOTE_USE, values).fetchone() == (False,):
        wrong.append(f"{role} may not update public.api_keys.last_used_at")
    return wrong


def _use(conninfo: str, service_conninfo: str | None, objects: Objects) -> Iterator[Check]:
    names = ("reads as the service", "writes as the service")
    if service_conninfo is None:
        yield from (Check(name=name, verdict="unknown", detail="no login of the service was given") for name in names)
        return
    relations = _relations(objects)
    views = [name for name in relations if Object("view", name) in objects]
    stored = [name for name in relations if name not in views]
    yield _attempt(
        names[0],
        service_conninfo,
        lambda service: read(service, stored, views),
        done=f"{len(stored)} tables and aggregates, {len(views)} views",
    )
    with connect(conninfo, purpose="verify") as owner, translate_errors(describe(conninfo)), marked_rows(owner) as run:
        yield _attempt(
            names[1],
            service_conninfo,
            lambda service: write_and_read_back(service, run),
            done="a trace, a metric and a log line; removed again",
        )


def _attempt(name: str, conninfo: str, work: Callable[[psycopg.Connection], None], *, done: str) -> Check:
    try:
        with connect(conninfo, purpose="verify") as service:
            work(service)
    except psycopg.Error as error:
        return Check(name=name, verdict="failed", detail=summary(error))
    except (DatabaseError, LookupError) as error:
        return Check(name=name, verdict="failed", detail=str(error))
    return Check(name=name, verdict="passed", detail=done)


def _relations(objects: Objects) -> list[str]:
    return sorted(each.name for each in objects if each.kind in {"table", "view"} or _is_continuous(each))


def _is_continuous(each: Object) -> bool:
    """Whether this is a continuous aggregate, which clients read by its name; the Apache edition's have no schema."""
    return each.kind == "aggregate" and "." in each.name


def _check(name: str, problems: Sequence[str], *, count: int) -> Check:
    if not problems:
        return Check(name=name, verdict="passed", detail=f"{count} as they should be")
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return Check(name=name, verdict="failed", detail="; ".join(problems[:_SHOWN]) + more)


def _listed(privileges: frozenset[str]) -> str:
    return ", ".join(sorted(privileges)) or "nothing"
