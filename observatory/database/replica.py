"""Replicas of a database on a throwaway server: the same roles, extensions and settings, and the same files applied.

Owns how a replica is made, and the objects of own migrations, which it keeps: the replica has just made them, so it is
their catalogue.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from psycopg.conninfo import make_conninfo

from observatory.database.catalogue import (
    SETTINGS,
    Catalogue,
    Object,
    Objects,
    Step,
    difference,
    load,
    read_objects,
    read_step,
    step_as_document,
)
from observatory.database.connection import connect, with_database
from observatory.database.error_translation import translate_errors
from observatory.database.errors import UnreachableError, UnsuitableServerError
from observatory.database.migration_session import MIGRATION_SETTINGS, server_edition
from observatory.database.migrations import ledger
from observatory.database.migrations.files import Edition, Migration, select_edition
from observatory.database.migrations.statements import parse
from observatory.database.observed_script import ObservedScript
from observatory.database.rehearsal_origin import Origin, differing_extensions, make
from observatory.database.schema_copy import copy_schema
from observatory.database.throwaway_server import Throwaway
from observatory.database.throwaway_templates import Template
from observatory.files.atomic import write_file

_PLACE = "the rehearsal"


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A database on a throwaway server.

    Attributes:
        conninfo: as the role that owns the schema.
        edition: of the server's TimescaleDB.
        differing: extensions that it lacks, or has in another version.
        applied: the files that it has.
        origin: the database.
        throwaway: has started the server.
        planned: edition of the database's migrations, which this machine may lack.
        copied: it is a copy of the database's schema.
    """

    conninfo: str
    edition: Edition
    differing: Sequence[str]
    applied: Sequence[Migration]
    origin: Origin
    throwaway: Throwaway
    planned: Edition
    copied: bool = False

    def make_repeatables(self) -> Collection[Object]:
        """Make what the repeatable migrations made in the database; return what was added. A copy has it.

        Raises:
            StatementFailedError: a file failed.
        """
        if self.copied or not self.origin.repeatable:
            return ()
        before = self._read_objects()
        with connect(self.conninfo, purpose="rehearsal", settings=MIGRATION_SETTINGS) as connection:
            for file in self.origin.repeatable:
                with translate_errors(f"{file.name} as it was applied"), connection.transaction():
                    connection.execute(file.source.encode())
        return self._read_objects().keys() - before.keys()

    def _read_objects(self) -> Objects:
        with connect(self.conninfo, purpose="rehearsal", settings=SETTINGS) as connection, translate_errors(_PLACE):
            return read_objects(connection)

    def read_step(self, also: Sequence[Migration] = (), *, without: Collection[Object] = ()) -> Step:
        """Return what own migrations have made and changed, with these files applied too, without some objects."""
        catalogue = load(self.edition)
        objects = {each: text for each, text in self._read_objects().items() if each not in without}
        files = sorted({*self.applied, *also}, key=lambda each: each.version)
        return difference(catalogue.at(count_described(catalogue, files)), objects)

    def own_variants(self) -> list[Migration]:
        """Return the own files that are for one edition only."""
        described = count_described(load(self.edition), self.applied)
        return [each for each in self.applied[described:] if each.variant]

    def keep_objects(self, also: Sequence[Migration] = (), *, without: Collection[Object] = ()) -> None:
        """Keep what own migrations have made, for `own_objects` after these files are applied too.

        Not what `make_repeatables` added, and not of a copy, which also has what no migration makes.
        """
        if self.copied:
            return
        files = [*self.applied, *also]
        if count_described(load(self.edition), files) < len(files):
            applied = [*self.origin.applied, *((each.path.stem, each.sha256) for each in also)]
            _keep(
                kept_objects(self.throwaway, self.origin, self.planned, applied), self.read_step(also, without=without)
            )


def count_described(catalogue: Catalogue, files: Sequence[Migration]) -> int:
    """Return how many of the files, from the first one on, the committed catalogue describes."""
    files = sorted(files, key=lambda each: each.version)
    return next(
        (number for number, each in enumerate(files) if not catalogue.describes(each.version, each.sha256)), len(files)
    )


def own_objects(throwaway: Throwaway, *, origin: Origin, edition: Edition, files: Sequence[Migration]) -> Step:
    """Return what own migrations have made and changed in a database: kept by a rehearsal, or from a new replica.

    Raises:
        DatabaseError: no server can be started, or the files cannot be applied to an empty database.
    """
    kept = kept_objects(throwaway, origin, edition, origin.applied)
    if kept is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return read_step(json.loads(kept.read_text(encoding="utf-8")))
    with replayed(throwaway, origin=origin, edition=edition, files=files) as replica:
        if replica.edition != edition and (only := replica.own_variants()):
            raise UnsuitableServerError(f"{only[0].file} is not of the {edition} edition, which this machine lacks")
        step = replica.read_step()
    _keep(kept, step)
    return step


def kept_objects(
    throwaway: Throwaway, origin: Origin, edition: Edition, applied: Sequence[tuple[str, str]]
) -> Path | None:
    """Return the file that has what own migrations have made; None where nothing is kept."""
    if throwaway.templates is None:
        return None
    return throwaway.templates.directory / f"{origin.key(throwaway.installation.version, edition, applied)}.json"


def _keep(file: Path | None, step: Step) -> None:
    if file is not None:
        with contextlib.suppress(OSError):
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_file(file, json.dumps(step_as_document(step)))


@contextlib.contextmanager
def replayed(
    throwaway: Throwaway, *, origin: Origin, edition: Edition, files: Sequence[Migration]
) -> Iterator[Replica]:
    """Make a replica inside the block by applying the files to an empty database.

    Args:
        throwaway: starts the server, and keeps its data for the next call.
        origin: the database.
        edition: of its migrations.
        files: all migrations with all variants.

    Raises:
        DatabaseError: no server can be started, or a file failed.
    """
    base, settings = _base(throwaway, origin, edition)
    template = base
    if origin.applied:
        prepare = partial(_replay, origin, files)
        key = origin.key(throwaway.installation.version, edition, origin.applied)
        template = Template(key=key, prepare=prepare, base=base)
    with throwaway(edition, template=template, settings=settings) as admin:
        replica = _replica(throwaway, origin, edition, admin)
        yield replace(replica, applied=_applied(origin, files, replica.edition))


@contextlib.contextmanager
def copied(throwaway: Throwaway, *, conninfo: str, origin: Origin, edition: Edition) -> Iterator[Replica]:
    """Make a replica inside the block by copying the schema of the database.

    Args:
        throwaway: starts the server.
        conninfo: of the database, as the role that owns the schema.
        origin: the database.
        edition: of its migrations.

    Raises:
        DatabaseError: no server can be started, or the schema cannot be copied; see `copy_schema`.
    """
    if throwaway.dump is None:
        raise UnreachableError("this machine has no pg_dump. Install PostgreSQL")
    base, settings = _base(throwaway, origin, edition)
    with throwaway(edition, template=base, settings=settings) as admin:
        owner = None if origin.has_own_owner else origin.owner
        copy_schema(conninfo, with_database(admin, origin.name), dump=throwaway.dump, owner=owner)
        yield replace(_replica(throwaway, origin, edition, admin), copied=True)


def _base(throwaway: Throwaway, origin: Origin, edition: Edition) -> tuple[Template, dict[str, str]]:
    """Return the template without a schema, and the server's settings."""
    key = origin.key(throwaway.installation.version, edition, ())
    return Template(key=key, prepare=partial(make, origin)), origin.server_settings(throwaway.installation.libraries)


def _replica(throwaway: Throwaway, origin: Origin, edition: Edition, admin: str) -> Replica:
    conninfo = _as_owner(origin, admin)
    with connect(conninfo, purpose="rehearsal") as connection, translate_errors(_PLACE):
        return Replica(
            conninfo=conninfo,
            edition=server_edition(connection, conninfo),
            differing=differing_extensions(origin, connection),
            applied=(),
            origin=origin,
            throwaway=throwaway,
            planned=edition,
        )


def _as_owner(origin: Origin, admin: str) -> str:
    return make_conninfo(with_database(admin, origin.name), user=origin.owner)


def _applied(origin: Origin, files: Sequence[Migration], edition: Edition) -> list[Migration]:
    """Return the files that the database has, in the variants of an edition."""
    versions = {int(stem.partition("_")[0]) for stem, _ in origin.applied}
    return [each for each in select_edition(files, edition) if each.version in versions]


def _replay(origin: Origin, files: Sequence[Migration], admin: str) -> None:
    """Apply the files in order, without observing them."""
    conninfo = _as_owner(origin, admin)
    with connect(conninfo, purpose="rehearsal", settings=MIGRATION_SETTINGS) as connection, translate_errors(_PLACE):
        edition = server_edition(connection, conninfo)
        ledger.create(connection)
    for migration in _applied(origin, files, edition):
        script = parse(migration)
        # A session for each file, as a deployment has after a SET.
        with connect(conninfo, purpose="rehearsal", settings=MIGRATION_SETTINGS) as connection:
            if script.transactional:
                with translate_errors(migration.place()), connection.transaction():
                    connection.execute(migration.sql.encode())
            else:
                ObservedScript(connection, conninfo, script, {}).run()
