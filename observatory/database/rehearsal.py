"""Rehearses pending migrations on a throwaway server: runs them on a replica of the database, and observes them.

Owns the verdict. `observatory.database.replica` makes the replica, `observatory.database.observed_script` observes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors
from observatory.database.errors import DatabaseError, StatementFailedError
from observatory.database.migration_session import MIGRATION_SETTINGS
from observatory.database.migrations.files import Edition, Migration
from observatory.database.migrations.repeatable import lacks_objects
from observatory.database.migrations.statement_locks import StatementEffects
from observatory.database.migrations.statements import Script
from observatory.database.observed_script import ObservedScript
from observatory.database.rehearsal_origin import Origin
from observatory.database.replica import Replica, copied, replayed
from observatory.database.throwaway_server import Throwaway

Verdict = Literal["passed", "failed", "not rehearsed"]

Observations = Mapping[tuple[str, int], StatementEffects]
"""The observed effects of statements, by the migration's name and the statement's index."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """The result of a rehearsal.

    Attributes:
        verdict: `passed` when all files ran without an error.
        detail: the reason in one line.
        observed: effects of each statement that ran in a transaction.
        copied: it started from a copy of the database's schema, which own migrations alone do not make.
    """

    verdict: Verdict
    detail: str
    copied: bool = False
    observed: Observations = field(default_factory=dict)


def rehearse(
    throwaway: Throwaway,
    *,
    conninfo: str,
    origin: Origin,
    edition: Edition,
    files: Sequence[Migration],
    scripts: Sequence[Script],
) -> Rehearsal:
    """Apply the files that the database has to an empty one, then run the scripts and observe them.

    Where the applied files fail there, or the scripts fail after them, start again from a copy of the database's
    schema: it may have what no migration makes. Keeps what the scripts made, so that a verification after their
    deployment needs no server.

    Args:
        throwaway: starts the server.
        conninfo: of the planned database, as the role that owns the schema.
        origin: the planned database.
        edition: of the planned database.
        files: all migrations with all variants.
        scripts: pending on the planned database.
    """
    try:
        with replayed(throwaway, origin=origin, edition=edition, files=files) as replica:
            if replica.edition != edition:
                return _not_rehearsed(f"the throwaway server does not have the {edition} edition of TimescaleDB")
            rehearsal = _rehearse(replica, scripts)
    except StatementFailedError as error:
        rehearsal = _not_rehearsed(f"the applied files do not make the schema of this database: {error}")
    except DatabaseError as error:
        return _not_rehearsed(str(error))
    if rehearsal.verdict == "passed" or not origin.applied:
        return rehearsal
    try:
        with copied(throwaway, conninfo=conninfo, origin=origin, edition=edition) as replica:
            return _from_copy(_rehearse(replica, scripts), rehearsal)
    except DatabaseError as error:
        return replace(rehearsal, detail=f"{rehearsal.detail}. A copy of its schema failed, too: {error}")


def _from_copy(rehearsal: Rehearsal, replay: Rehearsal) -> Rehearsal:
    """Return the result on a copy of the schema; where the scripts fail there too, the first failure."""
    if replay.verdict == "failed" and rehearsal.verdict != "passed":
        return replay
    why = f"it started from a copy of the database's schema, because with the applied files alone: {replay.detail}"
    return replace(rehearsal, detail=f"{rehearsal.detail}; {why}", copied=True)


def _rehearse(replica: Replica, scripts: Sequence[Script]) -> Rehearsal:
    observed: dict[tuple[str, int], StatementEffects] = {}
    lacking = f", with {'; '.join(replica.differing)}" if replica.differing else ""
    numbered = [script for script in scripts if script.migration.version]
    added = replica.make_repeatables()
    try:
        _observe(replica, numbered, observed)
        if not replica.copied:
            replica.keep_objects([script.migration for script in numbered], without=added)
        _observe(replica, _not_standing(replica, scripts[len(numbered) :]), observed)
    except DatabaseError as error:
        if lacking:  # which may be the reason
            return Rehearsal(verdict="not rehearsed", detail=f"{error}{lacking}", observed=observed)
        return Rehearsal(verdict="failed", detail=str(error), observed=observed)
    return Rehearsal(verdict="passed", detail=f"every statement ran on empty tables{lacking}", observed=observed)


def _not_standing(replica: Replica, repeatable: Sequence[Script]) -> list[Script]:
    """Return the repeatable scripts without those that were applied with this text, and whose objects all exist."""
    applied = {(each.name, each.sha256) for each in replica.origin.repeatable}
    with connect(replica.conninfo, purpose="rehearsal") as connection, translate_errors("the rehearsal"):
        return [
            script
            for script in repeatable
            if (script.migration.name, script.migration.sha256) not in applied or lacks_objects(connection, script)
        ]


def _observe(replica: Replica, scripts: Sequence[Script], observed: dict[tuple[str, int], StatementEffects]) -> None:
    for script in scripts:
        with connect(replica.conninfo, purpose="rehearsal", settings=MIGRATION_SETTINGS) as connection:
            ObservedScript(connection, replica.conninfo, script, observed).run()


def _not_rehearsed(why: str) -> Rehearsal:
    return Rehearsal(verdict="not rehearsed", detail=why)
