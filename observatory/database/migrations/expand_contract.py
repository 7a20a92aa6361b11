"""Expand and contract: two releases use one schema during a rollout, so nothing that one of them needs may be removed.

A migration expands (older releases still work with the schema) unless its header is `-- phase: contract`. A release
states the versions of the schema that it works with. A contracting migration beyond the newest of them would break the
release and is refused here. The caller passes the releases as plain data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors
from observatory.database.errors import ContractRefusedError

if TYPE_CHECKING:
    from observatory.database.migrations.statements import Script

_SOURCES = "SELECT version, source FROM observatory.schema_migrations WHERE version = ANY(%s) ORDER BY version"
_LATER = "SELECT version, source FROM observatory.schema_migrations WHERE version > %s ORDER BY version"


class SchemaRequirement(NamedTuple):
    """The versions of the schema that a fleet's release works with.

    Attributes:
        fleet: its color and role: `blue (live)`, `green (kept for rollback)`.
        version: of the release, `v0.4.0`.
        schema_min: lowest version of the schema, inclusive.
        schema_max: highest version of the schema that the release was built for, inclusive; later versions must only
            add to it.
    """

    fleet: str
    version: str
    schema_min: int
    schema_max: int


def refuse_contracts(scripts: Iterable[Script], requirements: Sequence[SchemaRequirement]) -> None:
    """Refuse pending migrations that contract while a release needs the old schema.

    Raises:
        ContractRefusedError: names the file, and each fleet with its release.
    """
    for script in scripts:
        migration = script.migration
        blocked = [each for each in requirements if each.schema_max < migration.version]
        if script.phase == "contract" and blocked:
            named = " and ".join(f"{each.fleet}: {each.version}, up to schema {each.schema_max}" for each in blocked)
            raise ContractRefusedError(
                f"{migration.place()}: removes what a release in use needs ({named}). Nothing was changed. First "
                f"deploy a release that supports schema {migration.version} to both fleets"
            )


def used_schema(applied: int, requirements: Sequence[SchemaRequirement]) -> int | None:
    """Return the number of the last migration whose objects a release in use may need; None without releases.

    Args:
        applied: the version of the database's schema: later objects exist in no database that a release has used.
        requirements: of the releases that the fleets run or keep for a rollback.
    """
    return min(applied, max(each.schema_max for each in requirements)) if requirements else None


def contracted_beyond(conninfo: str, version: int) -> int | None:
    """Return the first applied migration after `version` that contracts.

    None means that a release built for `version` can run on this database.

    Raises:
        StatementFailedError: there is no ledger.
        UnreachableError: the connection failed or broke.
    """
    return next(iter(_contracting(conninfo, _LATER, version)), None)


def contracting(conninfo: str, versions: Iterable[int]) -> tuple[int, ...]:
    """Return which of these applied migrations contract, in order.

    Raises:
        StatementFailedError: there is no ledger.
        UnreachableError: the connection failed or broke.
    """
    numbers = list(versions)
    return tuple(_contracting(conninfo, _SOURCES, numbers)) if numbers else ()


def _contracting(conninfo: str, query: str, value: int | list[int]) -> Iterator[int]:
    from observatory.database.migrations.statements import phase_of  # noqa: PLC0415 - loads the SQL parser

    with connect(conninfo, purpose="contracting migrations") as connection, translate_errors("the ledger"):
        found = connection.execute(query.encode(), [value]).fetchall()
    return (number for number, source in found if phase_of(source) == "contract")
