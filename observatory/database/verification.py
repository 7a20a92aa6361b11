"""Verifies that a database has the objects that its migrations create, and that the service can use it.

Compares the database with the committed catalogue of the ledger's version, both ways, then reads and writes with the
service's login. Owns the checks and their verdicts. Changes only marked rows, which it removes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import psycopg

from observatory.database.catalogue import SETTINGS, Catalogue, Object, Objects, load, read_objects
from observatory.database.catalogue.chunks import find_chunk_drift
from observatory.database.catalogue.differences import describe_difference
from observatory.database.catalogue.drift import Drift, find_drift
from observatory.database.connection import connect, describe
from observatory.database.deployment import SchemaStatus, status
from observatory.database.error_translation import error_summary, translate_errors
from observatory.database.errors import DatabaseError, StatementFailedError
from observatory.database.expected_objects import expected_objects
from observatory.database.migration_grants import read_grants
from observatory.database.migrations.files import Edition, read_migrations, read_repeatables
from observatory.database.migrations.numbering import version_in, version_towards
from observatory.database.migrations.repeatable import made_objects, pending_repeatables, removed_files
from observatory.database.pg_cron_jobs import PREFIX
from observatory.database.rehearsal_origin import read_origin
from observatory.database.roles.grants import Grants
from observatory.database.roles.privilege_check import wrong_privileges
from observatory.database.roles.privileges import SCHEMAS, Profile
from observatory.database.throwaway_server import Throwaway
from observatory.database.verification_rows import marked_rows, read, write_and_read_back

Verdict = Literal["passed", "failed", "unknown"]

# Name of each kind in the report, in the report's order.
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
    "schema": "schemas",
    "materialized view": "materialized views",
    "sequence": "sequences",
    "type": "types",
    "statistics": "statistics",
    "trigger": "triggers",
    "rule": "rules",
    "row security": "row security",
    "row security policy": "row security policies",
    "event trigger": "event triggers",
    "inheritance": "inheritance",
    "persistence": "persistence",
    "storage": "storage",
    "owner": "owners",
    "extension": "extensions",
    "publication": "publications",
    "foreign server": "foreign servers",
    "cast": "casts",
    "operator": "operators",
    "replica identity": "replica identities",
    "view option": "options of views",
    "scheduled action": "scheduled actions",
    "pg_cron job": "pg_cron jobs",
}
ADDITIONS = "additions"  # name of the check of what the migrations do not make
_SHOWN = 5
_SESSION = {"search_path": "public"}  # of the owner, who removes the marked rows
_FIRST_VERSION_WITH_TABLES = 1  # its migration makes the tables that the marked rows are written to
_TRACES = "public.llm_traces"  # one of them

_SCHEDULED = """
    SELECT substr(jobname, length(%(prefix)s) + 1), schedule || ' ' || command FROM cron.job
    WHERE starts_with(jobname, %(prefix)s) AND database = current_database() AND active
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """The result of one check.

    Attributes:
        name: of the check: `columns`, `grants`, `writes as the service`.
        verdict: `unknown` means that the check could not run; it does not count as passed.
        detail: what was found and what was expected, or how much was compared.
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
        version: of the schema, from the ledger.
        edition: of the migrations that made it.
        checks: in the order of the report.
        drift: every difference between the database and its migrations.
    """

    version: int
    edition: Edition
    checks: tuple[Check, ...]
    drift: tuple[Drift, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check passed; an unknown one did not."""
        return all(check.verdict == "passed" for check in self.checks)

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if check.verdict != "passed")

    @property
    def warnings(self) -> tuple[Drift, ...]:
        """What the migrations do not make, and what changes nothing that they make."""
        return tuple(each for each in self.drift if each.severity == "warning")


def verify(
    conninfo: str,
    *,
    migrations: Path,
    target: int | None = None,
    roles: Mapping[str, Profile] = MappingProxyType({}),
    service_conninfo: str | None = None,
    throwaway: Throwaway | None = None,
    catalogue: Callable[[Edition], Catalogue] = load,
) -> Verification:
    """Verify a database, after a deployment of its schema or at any time.

    Args:
        conninfo: a direct connection as the role that owns the schema.
        migrations: directory of the files.
        target: expected version of the database; None is the newest file's.
        roles: the roles whose privileges are checked, each with its profile; see `grant_access`.
        service_conninfo: connection string of the service's login, to read and write marked rows; None: these checks
            are unknown.
        throwaway: starts a server that replays own migrations, unless a rehearsal has kept what they make; None: their
            objects are unknown then.
        catalogue: returns the committed catalogue of an edition.

    Returns:
        The checks. A failed check does not raise.

    Raises:
        MigrationFileError: an unusable file.
        MigrationHistoryError: files and ledger contradict each other.
        StatementFailedError: the owner lacks the privilege to read.
        UnreachableError: the connection as the owner failed.
        UnsuitableServerError: a standby, or no TimescaleDB.
    """
    state = status(conninfo, migrations=migrations)
    expected = catalogue(_edition(state))
    files = read_migrations(migrations)
    checks = [_version_check(state, target, newest=files[-1].version)]
    made, repeated = _repeated(conninfo, state, migrations, waits=target is not None and target < files[-1].version)
    checks += repeated
    with connect(conninfo, purpose="verify", settings=SETTINGS) as connection, translate_errors(describe(conninfo)):
        found = read_objects(connection)
        origin = read_origin(connection)
        expectation = expected_objects(
            expected, state.applied, version=state.version, origin=origin, files=files, throwaway=throwaway
        )
        drift: list[Drift] = []
        if expectation.objects is None:
            checks.append(Check(name="objects", verdict="unknown", detail=expectation.unknown))
        elif state.applied:  # else other tools may have made what exists, and it is no drift
            drift = _without(made, find_drift(expectation.objects, found) + find_chunk_drift(connection))
            checks += [*_kind_checks(connection, expectation.objects, drift), _additions_check(drift)]
        used = found if expectation.objects is None else expectation.objects
        grants = read_grants(connection, roles)
        if roles and used:
            checks.append(_grants_check(connection, used, roles, grants))
    if state.version >= _FIRST_VERSION_WITH_TABLES:
        checks += _service_checks(conninfo, service_conninfo, _readable(used, roles, grants))
    return Verification(version=state.version, edition=expected.edition, checks=tuple(checks), drift=tuple(drift))


def _edition(state: SchemaStatus) -> Edition:
    """Return the edition whose files made the schema; before the first file with variants, the server's edition."""
    return next((entry.variant for entry in reversed(state.applied) if entry.variant), state.edition)


def _version_check(state: SchemaStatus, target: int | None, *, newest: int) -> Check:
    expected = newest if target is None else target
    if unfinished := [entry.stem for entry in state.applied if not entry.complete]:
        return Check(name="version", verdict="failed", detail=f"{unfinished[0]} was interrupted. Deploy again")
    if waiting := [name for name in state.pending if version_in(name) <= min(expected, state.version)]:
        detail = f"{waiting[0]} is pending. Deploy the pending migrations"
        return Check(name="version", verdict="failed", detail=detail)
    if not state.applied and expected:
        detail = (
            "no migration is recorded. Deploy the migrations; where other tools made this database, first record its "
            "version with `observatory deploy database --baseline N` (and the --database-url that you gave)"
        )
        return Check(name="version", verdict="failed", detail=detail)
    version = state.version if target is None else version_towards([each.name for each in state.applied], target)
    if version != expected:
        remedy = "Deploy the pending migrations" if version < expected else "Raise the target"
        return Check(name="version", verdict="failed", detail=f"is {version}, expected {expected}. {remedy}")
    return Check(name="version", verdict="passed", detail=f"{state.version}, by the {_edition(state)} edition's files")


def _repeated(
    conninfo: str, state: SchemaStatus, directory: Path, *, waits: bool
) -> tuple[frozenset[Object], list[Check]]:
    """Return what the repeatable migrations made, and their check where there are some.

    Args:
        conninfo: as the role that owns the schema.
        state: of the database.
        directory: of the files.
        waits: numbered files stay pending, so repeatable ones are not applied.
    """
    files = read_repeatables(directory, state.edition)
    if not files and not state.repeatable:
        return frozenset(), []
    settings = {"search_path": "public", "default_transaction_read_only": "on"}
    with connect(conninfo, purpose="verify", settings=settings) as connection, translate_errors(describe(conninfo)):
        removed = removed_files(files, state.repeatable)
        made = made_objects(connection, [entry for entry in state.repeatable if entry.file not in removed])
    pending = () if waits else pending_repeatables(files, state.repeatable)
    problems = [f"{each.file} is not applied as it is now. Deploy" for each in pending]
    problems += [
        f"{each.kind} {each.name} is not as {each.file} made it: {describe_difference(each.found, each.definition)}"
        for each in made
        if each.found is not None and each.found != each.definition
    ]
    check = _check("repeatable migrations", problems, count=len(files))
    gone = "".join(f"; {file} is no longer in the directory, and what it made stays" for file in removed)
    found = frozenset(Object(each.kind, each.name) for each in made)
    return found, [replace(check, detail=check.detail + gone)]


def _without(made: frozenset[Object], drift: list[Drift]) -> list[Drift]:
    """Return the drift without the additions that repeatable migrations made."""
    return [each for each in drift if each.difference != "added" or Object(each.kind, each.name) not in made]


def _kind_checks(connection: psycopg.Connection, objects: Objects, drift: Iterable[Drift]) -> Iterator[Check]:
    """Yield a check for each kind of objects that the migrations made."""
    for kind, name in _KINDS.items():
        expected = {each: definition for each, definition in objects.items() if each.kind == kind}
        if expected:
            lost = [each for each in drift if each.kind == kind and each.difference != "added"]
            problems = [f"{each.name} {each.detail}" for each in lost]
            if kind == "job":
                problems += _unscheduled(connection, expected)
            yield _check(name, problems, count=len(expected))


def _additions_check(drift: Iterable[Drift]) -> Check:
    """Return the check of what the migrations do not make; what changes no behaviour is a warning."""
    added = [each for each in drift if each.difference == "added"]
    if wrong := [str(each) for each in added if each.severity == "error"]:
        return _check(ADDITIONS, wrong, count=0)
    detail = f"{len(added)} that change nothing: {_shown([str(each) for each in added])}" if added else "none"
    return Check(name=ADDITIONS, verdict="passed", detail=detail)


def _readable(objects: Objects, roles: Mapping[str, Profile], grants: Grants) -> dict[Object, str]:
    """Return the objects without the relations of own schemas, unless a migration lets the service read them."""
    granted = {
        f"{target.schema}.{target.relation}"
        for target, privileges in grants.items()
        if roles[target.role] == "service" and "SELECT" in privileges and not target.column
    }
    shared = tuple(f"{schema}." for schema in SCHEMAS)
    return {each: text for each, text in objects.items() if each.name.startswith(shared) or each.name in granted}


def _grants_check(
    connection: psycopg.Connection, objects: Objects, roles: Mapping[str, Profile], grants: Grants
) -> Check:
    relations = _relations(objects)
    tables = {each.name for each in objects if each.kind == "table"}
    wrong = [
        line
        for role, profile in roles.items()
        for line in wrong_privileges(connection, role, profile, relations=relations, tables=tables, grants=grants)
    ]
    return _check("grants", wrong, count=len(roles) * len(relations))


def _unscheduled(connection: psycopg.Connection, jobs: Objects) -> list[str]:
    """Return a line for each job that pg_cron does not run as the schema defines it."""
    if connection.execute("SELECT to_regclass('cron.job') IS NOT NULL").fetchone() != (True,):
        return ["pg_cron is not installed in this database, so no job runs. Run CREATE EXTENSION pg_cron as superuser"]
    scheduled: dict[str, str] = dict(connection.execute(_SCHEDULED, {"prefix": PREFIX}).fetchall())
    return [
        f"{job.name} is not scheduled"
        if job.name not in scheduled
        else f"{job.name}: pg_cron's {describe_difference(scheduled[job.name], definition)}"
        for job, definition in jobs.items()
        if scheduled.get(job.name) != definition
    ]


def _service_checks(conninfo: str, service_conninfo: str | None, objects: Objects) -> Iterator[Check]:
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
        passed=f"{len(stored)} tables and aggregates, {len(views)} views",
    )
    if _TRACES not in stored:  # the migrations are of another database, or the check of objects fails
        return
    yield _write_check(names[1], conninfo, service_conninfo)


def _write_check(name: str, conninfo: str, service_conninfo: str) -> Check:
    try:
        with (
            connect(conninfo, purpose="verify", settings=_SESSION) as owner,
            translate_errors(describe(conninfo)),
            marked_rows(owner) as rows,
        ):
            return _attempt(
                name,
                service_conninfo,
                lambda service: write_and_read_back(service, rows.run),
                passed="a trace, a metric and a log line; removed again",
            )
    except StatementFailedError as error:  # a trigger or a publication by hand, which the drift has
        return Check(name=name, verdict="failed", detail=f"the marked rows cannot be removed: {error}")


def _attempt(name: str, conninfo: str, work: Callable[[psycopg.Connection], None], *, passed: str) -> Check:
    try:
        with connect(conninfo, purpose="verify") as service:
            work(service)
    except psycopg.Error as error:
        return Check(name=name, verdict="failed", detail=error_summary(error))
    except (DatabaseError, LookupError) as error:
        return Check(name=name, verdict="failed", detail=str(error))
    return Check(name=name, verdict="passed", detail=passed)


def _relations(objects: Objects) -> list[str]:
    return sorted(each.name for each in objects if each.kind in {"table", "view"} or _is_continuous(each))


def _is_continuous(each: Object) -> bool:
    """Return whether this is a continuous aggregate, which clients read by name; Apache's names have no schema."""
    return each.kind == "aggregate" and "." in each.name


def _check(name: str, problems: Sequence[str], *, count: int) -> Check:
    if not problems:
        return Check(name=name, verdict="passed", detail=f"{count} as expected")
    return Check(name=name, verdict="failed", detail=_shown(problems))


def _shown(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more
