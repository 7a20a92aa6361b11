"""Adopts a database that other tools made: compares its objects with the catalogue and records its version.

Runs no migration. The rows that it writes have the hashes and texts of the files, so later edits are refused as those
of applied files, and a mark that the files were not applied by a deployment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from observatory.database.advisory_locks import MIGRATION_LOCK, session_lock
from observatory.database.catalogue import SETTINGS, Catalogue, Object, Objects, load, read_objects
from observatory.database.catalogue.drift import find_drift
from observatory.database.connection import connect, describe
from observatory.database.error_translation import translate_errors
from observatory.database.errors import BaselineRefusedError
from observatory.database.migration_session import MIGRATION_SETTINGS, server_edition
from observatory.database.migrations import ledger
from observatory.database.migrations.files import Edition, Migration, load_migrations
from observatory.database.migrations.history import current_version

LOCK_WAIT_S = 60.0
_SHOWN = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """The comparison of a database with a version of the schema.

    Attributes:
        version: of the schema.
        edition: of the server's TimescaleDB.
        migrations: files that are, or would be, recorded as applied.
        differences: objects that the version has, and the database lacks or has in another form or of another owner.
        later: objects that only later migrations make, so that these would fail.
        extra: other objects that the migrations do not make; they are left alone.
    """

    version: int
    edition: Edition
    migrations: tuple[str, ...]
    differences: tuple[str, ...]
    later: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """Whether the database is at this version."""
        return not self.differences and not self.later


def plan_baseline(
    conninfo: str, *, migrations: Path, version: int, catalogue: Callable[[Edition], Catalogue] = load
) -> Baseline:
    """Compare a database without a ledger with a version of the schema. Writes nothing and takes no lock.

    Args:
        conninfo: as the role that owns the schema.
        migrations: directory of the files.
        version: number of the last file whose objects the database has.
        catalogue: returns the catalogue of an edition.

    Raises:
        BaselineRefusedError: the database has a ledger, or the version cannot be compared.
        MigrationFileError: an unusable file.
        UnreachableError: the connection failed or broke.
        UnsuitableServerError: a standby, or no TimescaleDB.
    """
    with connect(conninfo, purpose="baseline", settings=SETTINGS) as connection, translate_errors(describe(conninfo)):
        edition = server_edition(connection, conninfo)
        _refuse_ledger(ledger.read(connection), conninfo)
        files = load_migrations(migrations, edition)
        expected = catalogue(edition)
        recorded = _recorded(files, version, expected)
        return _compared(version, edition, recorded, expected, read_objects(connection))


def record_baseline(
    conninfo: str,
    *,
    migrations: Path,
    version: int,
    actor: str,
    deployment_id: str,
    lock_wait_s: float = LOCK_WAIT_S,
    catalogue: Callable[[Edition], Catalogue] = load,
) -> Baseline:
    """Record that a database without a ledger is at a version of the schema, after comparing it.

    Args:
        conninfo: a direct connection as the role that owns the schema.
        migrations: directory of the files.
        version: number of the last file whose objects the database has.
        actor: who records it; the rows have it after the mark `baseline by`.
        deployment_id: written to the ledger.
        lock_wait_s: seconds to wait for another deployment.
        catalogue: returns the catalogue of an edition.

    Raises:
        BaselineRefusedError: the database has a ledger, objects are missing or different, or later migrations would
            find their objects in the way; nothing was changed.
        LockHeldError: another deployment is running; nothing was changed.
        MigrationFileError, UnreachableError, UnsuitableServerError: see `plan_baseline`.
    """
    from observatory.database.migrations.statements import parse  # noqa: PLC0415 - loads the SQL parser

    with (
        connect(conninfo, purpose=f"deploy {deployment_id}", settings=MIGRATION_SETTINGS) as connection,
        translate_errors(describe(conninfo)),
        session_lock(connection, MIGRATION_LOCK, wait_s=lock_wait_s),
    ):
        found = plan_baseline(conninfo, migrations=migrations, version=version, catalogue=catalogue)
        if not found.accepted:
            raise BaselineRefusedError(_refusal(found, conninfo))
        author = ledger.Author(
            actor=f"{ledger.BASELINE_MARK}{actor}", deployment_id=deployment_id, edition=found.edition
        )
        with connection.transaction():
            ledger.create(connection)
            for migration in load_migrations(migrations, found.edition):
                if migration.version <= version:
                    hashes = [statement.sha256 for statement in parse(migration).statements]
                    ledger.insert(
                        connection,
                        migration,
                        author,
                        hashes=hashes,
                        total=len(hashes),
                        duration_ms=0,
                        holder=connection.info.backend_pid,
                    )
    return found


def matching_version(
    conninfo: str, *, migrations: Path, catalogue: Callable[[Edition], Catalogue] = load
) -> int | None:
    """Return the highest version whose objects a database without a ledger has; None where there is none.

    Raises:
        DatabaseError: see `plan_baseline`.
    """
    with connect(conninfo, purpose="baseline", settings=SETTINGS) as connection, translate_errors(describe(conninfo)):
        edition = server_edition(connection, conninfo)
        found, expected = read_objects(connection), catalogue(edition)
        for migration in reversed(load_migrations(migrations, edition)):
            if expected.describes(migration.version, migration.sha256):
                compared = _compared(migration.version, edition, (), expected, found)
                if compared.accepted:
                    return migration.version
    return None


def _refuse_ledger(entries: Sequence[ledger.Entry], conninfo: str) -> None:
    if entries:
        raise BaselineRefusedError(
            f"{describe(conninfo)} has a ledger with {len(entries)} rows and is at version {current_version(entries)}. "
            "A baseline is only for a database that other tools made. Deploy the pending migrations instead"
        )


def _recorded(files: Sequence[Migration], version: int, expected: Catalogue) -> tuple[Migration, ...]:
    """Return the files up to a version, all of which the catalogue describes."""
    if version not in {migration.version for migration in files}:
        last = files[-1].version if files else 0
        raise BaselineRefusedError(f"{version}: no migration has this number. Name one from 1 to {last}")
    recorded = tuple(migration for migration in files if migration.version <= version)
    for migration in recorded:
        if not expected.describes(migration.version, migration.sha256):
            raise BaselineRefusedError(
                f"{migration.place()}: the catalogue has no objects of this file, so the database cannot be compared "
                "with it. Choose an earlier version, or restore the file"
            )
    return recorded


def _compared(
    version: int, edition: Edition, recorded: Sequence[Migration], expected: Catalogue, found: Objects
) -> Baseline:
    objects = expected.at(version)
    made_later = {each for step in expected.steps[version:] for each in step.sets} - objects.keys()
    drift = find_drift(objects, found)
    added = [each for each in drift if each.difference == "added"]
    later = [each for each in added if Object(each.kind, each.name) in made_later]
    owners = [each for each in added if each.kind == "owner"]  # the role that deploys could not alter these
    return Baseline(
        version=version,
        edition=edition,
        migrations=tuple(migration.file for migration in recorded),
        differences=tuple(f"{each.kind} {each.name} {each.detail}" for each in drift if each.difference != "added")
        + tuple(f"{each.kind} of {each.name} is {each.detail}" for each in owners),
        later=tuple(f"{each.kind} {each.name}" for each in later),
        extra=tuple(f"{each.kind} {each.name}" for each in added if each not in (*later, *owners)),
    )


def _refusal(found: Baseline, conninfo: str) -> str:
    reasons = []
    if found.differences:
        reasons.append(f"differs from it: {_listed(found.differences)}")
    if found.later:
        reasons.append(f"has objects that only later migrations make: {_listed(found.later)}")
    return (
        f"{describe(conninfo)} is not at version {found.version} of the schema: it {', and '.join(reasons)}. Nothing "
        "was changed. Repair the database or choose another version; `--dry-run` lists everything"
    )


def _listed(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "; ".join(lines[:_SHOWN]) + more
